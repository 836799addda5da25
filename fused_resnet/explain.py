"""Which path each part of a model takes for an input, and why."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from torch import Tensor, nn

from .ops.dispatch import Decision, recording


@dataclass(frozen=True)
class Row:
    """One decision: `name` is the module's, `path` "fused" or "unfused", `backend` who ran it, `reason` why so."""

    name: str
    kind: str
    path: str
    backend: str
    reason: str


@dataclass(frozen=True)
class Explanation:
    """The rows of `explain`, in the order of the forward pass; as a string, a table."""

    rows: list[Row] = field(default_factory=list)

    def __str__(self) -> str:
        cells = [("module", "kind", "path", "backend", "reason")]
        cells += [(row.name, row.kind, row.path, row.backend, row.reason) for row in self.rows]
        widths = [max(len(line[i]) for line in cells) for i in range(4)]
        lines = ["  ".join([*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[4]]) for line in cells]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def explain(model: nn.Module, input: Tensor) -> Explanation:
    """What `model(input)` would do, part by part: fused or unfused, on which backend, and the reason.

    The model runs once on the input, in the caller's grad mode and with the caller's backend; in training mode a deep
    copy runs, so that running statistics stay as they are.  Hooks on the model fire.  Only what this call decides is
    told, not what other threads decide meanwhile; of a compiled model, what it would do uncompiled.

    Args:
        model: a model or block of `fused_resnet`, frozen or live, or any module that contains some.
        input: what the model takes.

    Returns:
        An `Explanation`, whose `rows` name each part; print it for a table.
    """
    names = {module: name or "(model)" for name, module in model.named_modules()}
    # torch.compile's own module, which has the model inside; compiled code tells nothing
    subject = getattr(model, "_orig_mod", model)
    if any(module.training for module in model.modules()):
        copied = copy.deepcopy(model)
        names = {module: name or "(model)" for name, module in copied.named_modules()}
        subject = getattr(copied, "_orig_mod", copied)
    with recording() as decisions:
        subject(input)
    return Explanation(list(_rows(decisions, names)))


def _rows(decisions: list[Decision], names: dict[object, str]):
    """One row a module; the ops that follow it, up to the next module, are its own."""
    starts = [i for i, decision in enumerate(decisions) if decision.module is not None]
    for start, end in zip(starts, [*starts[1:], len(decisions)], strict=True):
        head, own = decisions[start], decisions[start + 1 : end]
        name, kind = names.get(head.module, "?"), type(head.module).__name__
        if head.unfused_reason is not None:
            yield Row(name, kind, "unfused", "modules", head.unfused_reason)
            continue
        chosen = dict.fromkeys((decision.backend, decision.backend_reason) for decision in own)
        backends = dict.fromkeys(backend for backend, _ in chosen)
        yield Row(name, kind, "fused", ", ".join(backends), "; ".join(dict.fromkeys(reason for _, reason in chosen)))
