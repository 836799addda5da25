"""The experiment that residual networks come from: plain against residual networks of 20 and 56 layers.

    python -m benchmarks.degradation                    # scikit-learn's digits, minutes on a CPU
    python -m benchmarks.degradation --data ~/cifar-10-batches-py --epochs 80 --batch 128 --depth 20 32 44 56

A plain network is the residual one with the skips switched off: the same convolutions, norms and initial weights (He et
al. 2015, figures 1 and 6).  Draws training error and the norm of every layer's gradient over time; writes
degradation.json and degradation.png into --out.
Exit status: 0; 2 when an argument cannot be used.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fused_resnet import BackendError, BasicBlock
from fused_resnet.blocks.stem import stem_forward
from fused_resnet.models import CifarResNet

from .learning.options import add_training_arguments, training_setup
from .learning.train import train
from .record import environment, report

KINDS = ("plain", "residual")
METHOD = (
    "The CIFAR networks of He et al. 2015, option-A shortcuts; plain is the same network without its skips, from the "
    "same initial weights, order and augmentation. Training error is counted on the augmented batches as they are "
    "trained on. Gradients: the norm of each 3x3 convolution's weight gradient, the mean over an epoch's steps."
)


class PlainBlock(nn.Module):
    """A basic block with its skip switched off, on the block's own modules: two times convolution, norm, ReLU."""

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        self.conv1, self.bn1 = block.conv1, block.bn1
        self.conv2, self.bn2 = block.conv2, block.bn2
        self.relu = block.relu

    def forward(self, x: Tensor) -> Tensor:
        x = stem_forward(self.conv1, self.bn1, self.relu, None, x)
        return stem_forward(self.conv2, self.bn2, self.relu, None, x)


def without_skips(model: CifarResNet) -> CifarResNet:
    """`model`, every block of it replaced by its `PlainBlock`; parameters keep their names."""
    for stage in (model.layer1, model.layer2, model.layer3):
        for index, block in enumerate(stage):
            stage[index] = PlainBlock(block)
    return model


def network(kind: str, depth: int, classes: int, seed: int) -> nn.Module:
    """A plain or residual network, `depth` layers deep; both kinds have the same weights at the same seed."""
    torch.manual_seed(seed)
    model = CifarResNet(depth, classes)
    return without_skips(model) if kind == "plain" else model


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m benchmarks.degradation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("--depth", type=int, nargs="+", default=[20, 56], help="layers (default: 20 56)")
    arguments.add_argument("--seed", type=int, default=0, help="seed of weights and order (default: 0)")
    add_training_arguments(arguments, epochs=15, batch=64, name="degradation")
    return arguments


def chart(path: Path, document: dict[str, object]) -> str | None:
    """Training errors, and a map of gradient norms (layer over epoch) per network, as a PNG; None, or why not."""
    try:
        import matplotlib
    except ImportError:
        return "no chart: matplotlib is not installed"
    matplotlib.use("Agg")
    from matplotlib import colors, pyplot, ticker

    runs, depths = document["runs"], sorted({run["depth"] for run in document["runs"]})
    norms = [norm for run in runs for epoch in run["gradients"] for norm in epoch.values() if norm > 0]
    scale = colors.LogNorm(min(norms), max(norms)) if norms else None
    figure, axes = pyplot.subplots(2, 1 + len(depths), figsize=(4.6 * (1 + len(depths)), 8), squeeze=False)
    errors = [100 * error for run in runs for error in run["training_error"]]
    for run in runs:
        row = KINDS.index(run["kind"])
        axis, shade = axes[row][0], (1 + depths.index(run["depth"])) / len(depths)
        epochs = range(1, len(run["training_error"]) + 1)
        colour = pyplot.get_cmap("Reds" if run["kind"] == "plain" else "Blues")(0.3 + 0.6 * shade)
        style = {"color": colour, "label": f"{run['depth']} layers", "marker": "o" if len(epochs) == 1 else None}
        axis.plot(epochs, [100 * error for error in run["training_error"]], **style)
        axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        axis.set(title=f"{run['kind']}: training error, %", xlabel="epoch", ylim=(0, 1.05 * max(errors)))
        axis.legend(fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        grid = [[epoch[layer] for epoch in run["gradients"]] for layer in run["gradients"][0]]
        panel = axes[row][1 + depths.index(run["depth"])]
        extent = (0.5, len(run["gradients"]) + 0.5, len(grid) + 0.5, 0.5)
        drawn = panel.imshow(grid, aspect="auto", norm=scale, cmap="viridis", interpolation="nearest", extent=extent)
        panel.set(title=f"{run['kind']}, {run['depth']} layers: gradient norm", xlabel="epoch", ylabel="convolution")
        panel.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        panel.yaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        figure.colorbar(drawn, ax=panel)
    figure.suptitle(f"Plain and residual networks on {document['data']}", fontsize=12)
    figure.text(0.01, 0.005, environment.headline(document["environment"]), fontsize=6, color="#555555")
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return None


def show(document: dict[str, object]) -> None:
    """The table: training error at the end, accuracy, and how unequal the layers' gradients are."""
    table = []
    for run in document["runs"]:
        first, last = (list(run["gradients"][index].values()) for index in (0, -1))
        table.append(
            [
                f"{run['kind']} {run['depth']}",
                f"{100 * run['training_error'][-1]:.2f}",
                f"{100 * run['accuracy'][-1]:.2f}",
                *(report.scientific(norms[index]) for norms in (first, last) for index in (0, -1)),
            ]
        )
    columns = ["network", "training error %", "accuracy %", "first layer's gradient, first epoch", "last layer's"]
    columns += ["first layer's, last epoch", "last layer's "]
    title = f"{document['data']}, {document['options']['epochs']} epochs"
    report.show_table(title, columns, table, ["gradients: norms of the convolutions' weight gradients"])


def run(options: argparse.Namespace) -> dict[str, object]:
    """Train every network; the document that becomes the JSON file."""
    device, data, schedule = training_setup(options)
    runs, count = [], len(KINDS) * len(options.depth)
    networks = [(kind, depth) for depth in options.depth for kind in KINDS]
    models = [network(kind, depth, data.classes, options.seed) for kind, depth in networks]
    with report.Progress("degradation", options.quiet) as bar:
        for (kind, depth), model in zip(networks, models, strict=True):

            def progress(epoch: int, kind: str = kind, depth: int = depth) -> None:
                bar.update((len(runs) + epoch / schedule.epochs) / count, f"{kind} {depth}, epoch {epoch}")

            curve = train(model, data, schedule, device, options.seed, progress, watch_gradients=True)
            runs.append({"kind": kind, "depth": depth, **vars(curve)})
    return {
        "schema": 1,
        "benchmark": "degradation",
        "data": data.name,
        "images": {"train": len(data.train), "test": len(data.test)},
        "method": METHOD,
        "backend": options.backend,
        "environment": environment.environment(device),
        "options": {key: getattr(options, key) for key in ("epochs", "batch", "rate", "dtype", "seed", "depth")},
        "runs": runs,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(argv)
    try:
        document = run(options)
    except (ValueError, OSError, ImportError, BackendError) as error:
        print(f"benchmarks.degradation: {error}", file=sys.stderr)
        return 2
    print(environment.headline(document["environment"]) + f"; backend {document['backend']}\n")
    show(document)
    folder = Path(options.out)
    target = Path(options.json) if options.json else folder / "degradation.json"
    report.write_json(target, document)
    missing = chart(folder / "degradation.png", document)
    print(f"written: {target}" + (f"; {missing}" if missing else f" and {folder / 'degradation.png'}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
