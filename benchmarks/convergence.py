"""Trains ours and torchvision-style eager from the same seeds on real images and compares where they arrive.

    python -m benchmarks.convergence                    # ResNet-20 on scikit-learn's digits, three seeds
    python -m benchmarks.convergence --data ~/cifar-10-batches-py --epochs 100 --batch 128 --dtype bfloat16
    torchrun --nproc-per-node 8 -m benchmarks.convergence --data ~/imagenet --model resnet50 --batch 1024 --workers 8

Eager is the same network with every convolution, norm and ReLU called by itself; both see the same initial weights, the
same batches and the same augmentation.  Writes convergence.json and convergence.png into --out.
Exit status: 0; 1 when the mean accuracies differ by more than the spread of the seeds (one seed has none, and is not
judged), or ours is below --at-least; 2 when an argument cannot be used.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

import fused_resnet
from fused_resnet import BackendError

from .learning.data import Data
from .learning.options import add_training_arguments, training_setup
from .learning.train import Curve, Schedule, processes, train, unfused, world
from .record import environment, report

ROWS = ("fused_resnet", "eager")
COLOURS = {"fused_resnet": "#2a6f97", "eager": "#d1495b"}
METHOD = (
    "SGD with Nesterov momentum and weight decay, linear warm-up and cosine decay; images shifted, and mirrored where "
    "that makes sense. Rows of a seed share initial weights, order and augmentation. Accuracy on the held-out images, "
    "in eval mode, after every epoch. The spread of a row is its best seed's final accuracy minus its worst's."
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m benchmarks.convergence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("--model", default="cifar_resnet20", help="a fused_resnet builder (default: cifar_resnet20)")
    arguments.add_argument("--seeds", type=int, default=3, help="how many seeds (default: 3)")
    arguments.add_argument("--at-least", type=float, metavar="PERCENT", help="fail where our mean accuracy is lower")
    add_training_arguments(arguments, epochs=15, batch=64, name="convergence")
    return arguments


def network(name: str, classes: int, seed: int) -> nn.Module:
    """The network that `name` builds, its weights drawn from `seed`."""
    if name not in fused_resnet.models.TORCHVISION_MODELS + fused_resnet.models.CIFAR_MODELS:
        expected = ", ".join(fused_resnet.models.TORCHVISION_MODELS + fused_resnet.models.CIFAR_MODELS)
        raise ValueError(f"--model {name}: expected one of {expected}")
    torch.manual_seed(seed)
    return getattr(fused_resnet, name)(num_classes=classes)


def learn(
    options: argparse.Namespace, data: Data, schedule: Schedule, device: torch.device, bar: report.Progress
) -> list[dict[str, object]]:
    """Every row from every seed: {"row", "seed", "seconds", the curve}."""
    runs = []
    count = len(ROWS) * options.seeds
    for seed in range(options.seeds):
        for row in ROWS:
            model = network(options.model, data.classes, seed)

            def progress(epoch: int, row: str = row, seed: int = seed) -> None:
                bar.update((len(runs) + epoch / schedule.epochs) / count, f"{row}, seed {seed}, epoch {epoch}")

            started = time.perf_counter()
            curve = train(model if row == "fused_resnet" else unfused(model), data, schedule, device, seed, progress)
            runs.append(
                {"row": row, "seed": seed, "seconds": round(time.perf_counter() - started, 2), **described(curve)}
            )
    return runs


def described(curve: Curve) -> dict[str, list[float]]:
    """A curve for JSON."""
    return {"loss": curve.loss, "training_error": curve.training_error, "accuracy": curve.accuracy}


def verdict(runs: list[dict[str, object]], images: int) -> dict[str, object]:
    """Final accuracies of both rows, and whether their means agree within the spread of the seeds.

    Args:
        images: of the test set; a difference of one image is none.
    """
    final = {row: [run["accuracy"][-1] for run in runs if run["row"] == row] for row in ROWS}
    mean = {row: sum(values) / len(values) for row, values in final.items()}
    spread = {row: max(values) - min(values) for row, values in final.items()}
    allowed = max(*spread.values(), 1 / images)
    difference = mean["fused_resnet"] - mean["eager"]
    return {
        "final": final,
        "mean": mean,
        "spread": spread,
        "difference": difference,
        "allowed": allowed,
        "agree": abs(difference) <= allowed + 1e-12,
    }


def chart(path: Path, document: dict[str, object]) -> str | None:
    """Training loss and accuracy over the epochs, a line per seed, as a PNG; None, or why there is none."""
    try:
        import matplotlib
    except ImportError:
        return "no chart: matplotlib is not installed"
    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.6))
    for run in document["runs"]:
        epochs = range(1, len(run["loss"]) + 1)
        style = {"color": COLOURS[run["row"]], "linestyle": "-" if run["row"] == "fused_resnet" else "--", "alpha": 0.8}
        label = run["row"] if run["seed"] == 0 else None
        style |= {"marker": "o"} if len(epochs) == 1 else {}
        left.plot(epochs, run["loss"], label=label, **style)
        right.plot(epochs, [100 * value for value in run["accuracy"]], label=label, **style)
    left.set_yscale("log")
    for axis, title in ((left, "training loss"), (right, "accuracy on held-out images, %")):
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        axis.set_title(title, fontsize=10)
        axis.legend(fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{document['model']} on {document['data']}: a line per seed", fontsize=11)
    figure.text(0.01, 0.005, environment.headline(document["environment"]), fontsize=6, color="#555555")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return None


def show(document: dict[str, object]) -> None:
    """The table of final accuracies."""
    found, table = document["verdict"], []
    for row in ROWS:
        seconds = sum(run["seconds"] for run in document["runs"] if run["row"] == row)
        seeds = " ".join(f"{100 * value:.2f}" for value in found["final"][row])
        table.append(
            [row, seeds, f"{100 * found['mean'][row]:.2f}", f"{100 * found['spread'][row]:.2f}", f"{seconds:.0f}"]
        )
    agree = "within" if found["agree"] else "MORE than"
    note = f"the means differ by {100 * abs(found['difference']):.2f}, {agree} the allowed {100 * found['allowed']:.2f}"
    title = f"{document['model']} on {document['data']}, {document['options']['epochs']} epochs: accuracy in %"
    report.show_table(title, ["row", "seeds", "mean", "spread", "seconds"], table, [note])


def run(options: argparse.Namespace) -> dict[str, object] | None:
    """Train everything; the document that becomes the JSON file, or None on every process but the first."""
    if options.seeds < 1:
        raise ValueError(f"--seeds {options.seeds}: expected at least 1")
    device, data, schedule = training_setup(options)
    network(options.model, data.classes, 0)  # a wrong name is said before anything is started
    with processes(device) as own, report.Progress("convergence", options.quiet or _is_follower()) as bar:
        runs = learn(options, data, schedule, own, bar)
        rank, size = world()
    if rank:
        return None
    document = {
        "schema": 1,
        "benchmark": "convergence",
        "model": options.model,
        "data": data.name,
        "images": {"train": len(data.train), "test": len(data.test)},
        "processes": size,
        "method": METHOD,
        "backend": options.backend,
        "environment": environment.environment(device),
        "options": {key: getattr(options, key) for key in ("epochs", "batch", "rate", "dtype", "seeds")},
        "runs": runs,
    }
    return document | {"verdict": verdict(runs, len(data.test))}


def _is_follower() -> bool:
    return world()[0] > 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(argv)
    try:
        document = run(options)
    except (ValueError, OSError, ImportError, BackendError) as error:
        print(f"benchmarks.convergence: {error}", file=sys.stderr)
        return 2
    if document is None:
        return 0
    print(environment.headline(document["environment"]) + f"; backend {document['backend']}\n")
    show(document)
    folder = Path(options.out)
    target = Path(options.json) if options.json else folder / "convergence.json"
    report.write_json(target, document)
    missing = chart(folder / "convergence.png", document)
    print(f"written: {target}" + (f"; {missing}" if missing else f" and {folder / 'convergence.png'}"))
    found, wrong = document["verdict"], []
    if options.seeds > 1 and not found["agree"]:
        wrong.append("the two rows' accuracies differ by more than the spread of the seeds")
    if options.at_least is not None and 100 * found["mean"]["fused_resnet"] < options.at_least:
        wrong.append(f"accuracy {100 * found['mean']['fused_resnet']:.2f} %, expected at least {options.at_least} %")
    for text in wrong:
        print(f"FAILED {text}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
