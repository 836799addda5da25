"""A residual network's outputs stage by stage, and statistics for one that was never trained."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "logits")


def randomize(model: nn.Module, image: Tensor, seed: int = 0) -> None:
    """Give `model`'s batch norms weights, biases and statistics as training would: nothing at its initial value.

    The statistics are those of one training-mode pass over `image`, so that activations keep their size through the
    depth of the network.  Parameters of other layers stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        with torch.no_grad():
            norm.weight.copy_(0.5 + torch.rand(norm.weight.shape, generator=generator))
            norm.bias.copy_(0.2 * torch.randn(norm.bias.shape, generator=generator))
    training = model.training
    with torch.no_grad():
        model.train()(image)
    model.train(training)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum


def stages_of(model: nn.Module) -> dict[str, nn.Module]:
    """The children of a network whose outputs are those of its stages."""
    return {name: child for name, child in model.named_children() if name in STAGES}


def frozen_stages(frozen: nn.Module, source: nn.Module) -> dict[str, nn.Module]:
    """The parts of a frozen network whose outputs are those of `source`'s stem and stages."""
    stages, end = {"stem": frozen.body.stem}, 0
    for name, stage in stages_of(source).items():
        end += len(stage)
        stages[name] = frozen.body.blocks[end - 1]
    return stages


def stage_outputs(model: nn.Module, image: Tensor, stages: dict[str, nn.Module] | None = None) -> dict[str, Tensor]:
    """The outputs of stem, layer1 to layer4 and the logits, those that `model` has.

    Read by hooks on the stages as wholes, which leave the blocks inside them on the path they would take.  `stages`
    names the modules where they are not `model`'s children of these names.
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable:
        return lambda module, arguments, output: outputs.__setitem__(name, output)

    stages = stages_of(model) if stages is None else stages
    handles = [stage.register_forward_hook(keep(name)) for name, stage in stages.items()]
    if "stem" not in stages and "layer1" in stages:
        handles.append(
            stages["layer1"].register_forward_pre_hook(
                lambda module, arguments: outputs.__setitem__("stem", arguments[0])
            )
        )
    try:
        with torch.no_grad():
            outputs["logits"] = model(image)
    finally:
        for handle in handles:
            handle.remove()
    return {name: outputs[name] for name in STAGES if name in outputs}
