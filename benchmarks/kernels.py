"""Compiles every Triton kernel ahead of time and reports what each needs, and the CUDA ones: no GPU, nothing is timed.

    python -m benchmarks.kernels [--json FILE] [--arch 80 90 100] [--model resnet18 resnet50] [--dtype bfloat16]
                                 [--mode inference training cuda] [--classes]

Triton's convolutions are those of batch 256, each with the tile and constants that the launcher would use on that
architecture (both ways of loading where tensor descriptors apply), beside the passes and poolings.  The mode cuda lists
the kernels of `fused_resnet._C`, as its build compiled them, by their template arguments.  Exits with 1 when a kernel
does not compile, spills on sm_90, or misses the matrix instructions that a convolution must have.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fused_resnet.backends.triton import plan as planning
from fused_resnet.tuning import Choice, lookup

from .meters import aot, cuda_kernels
from .subjects.convolutions import MODELS, Convolution, convolutions
from .subjects.training_kernels import class_of, training_plans

ARCHITECTURES = (80, 90, 100)
MODES = ("inference", "training", "cuda")
BATCH = 256
_OP = "conv_scale_shift_act"


@dataclass(frozen=True)
class Row:
    """One kernel to compile for one architecture, and what it is first needed for."""

    arch: int
    model: str
    layer: str
    shape: str
    tile: str
    plan: planning.LaunchPlan


def rows_of(
    models: Iterable[str], arch: int, dtype: str, batch: int = BATCH, modes: Iterable[str] = MODES[:1]
) -> list[Row]:
    """The distinct kernels of `models` on sm_`arch`, in the order they run."""
    found: dict[str, Row] = {}
    for mode in modes:
        rows_of_conv = _conv_rows if mode == "inference" else _training_rows
        for model in models:
            for row in (row for conv in convolutions(model, batch) for row in rows_of_conv(model, conv, arch, dtype)):
                found.setdefault(_identity(row), row)
        for row in _other_rows(arch, dtype, batch) if mode == "inference" else ():
            found.setdefault(_identity(row), row)
    return list(found.values())


def one_of_each_class(rows: Iterable[Row]) -> list[Row]:
    """The first of the rows whose kernels differ in trip counts only."""
    found: dict[tuple, Row] = {}
    for row in rows:
        found.setdefault((row.arch, class_of(row.plan)), row)
    return list(found.values())


def _identity(row: Row) -> str:
    """Equal for rows that compile to the same kernel."""
    from fused_resnet.backends.triton.kernels import KERNELS

    compiled = aot.signature_of(row.plan, KERNELS[row.plan.kernel])
    return f"{row.arch} {row.plan.kernel} {compiled} {row.plan.num_warps} {row.plan.num_stages}"


def _epilogue(conv: Convolution) -> planning.Epilogue:
    shape = conv.shape
    residual = (shape.k, shape.p, shape.q) if conv.residual else None
    return planning.Epilogue(*["float32"] * 4, eps=1e-5, residual=residual, relu=conv.relu)


def _conv_rows(model: str, conv: Convolution, arch: int, dtype: str) -> list[Row]:
    choice = lookup(_OP, arch, dtype, conv.shape)
    choices = [choice]
    if choice.algorithm == "implicit_gemm_tma":
        choices.append(replace(choice, algorithm="implicit_gemm"))
    rows = []
    for each in choices:
        plan = planning.plan_conv(conv.shape, dtype, arch, each, _epilogue(conv))
        rows.append(Row(arch, model, conv.name, conv.shape.key(), _tile(each), plan))
    pass_plan = planning.plan_scale_shift_act(BATCH, conv.shape.p, conv.shape.q, conv.shape.k, dtype, _epilogue(conv))
    return [*rows, Row(arch, model, conv.name, conv.shape.key(), "", pass_plan)]


def _training_rows(model: str, conv: Convolution, arch: int, dtype: str) -> list[Row]:
    rows = []
    for plan in training_plans(conv, arch, dtype):
        extents = [str(plan.constexprs[name]) for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K") if name in plan.constexprs]
        tile = f"{'x'.join(extents)} w{plan.num_warps} s{plan.num_stages}"
        rows.append(Row(arch, model, conv.name, conv.shape.key(), tile, plan))
    return rows


def _tile(choice: Choice) -> str:
    tile = choice.tile
    return f"{tile.block_m}x{tile.block_n}x{tile.block_k} w{tile.num_warps} s{tile.num_stages}"


def _other_rows(arch: int, dtype: str, batch: int) -> list[Row]:
    plans = {
        "maxpool": planning.plan_max_pool(batch, 112, 112, 64, 3, 2, 1, dtype),
        "avgpool": planning.plan_global_avg_pool(batch, 7, 7, 2048, dtype),
        "option A": planning.plan_option_a(batch, 32, 32, 16, 32, 2, dtype),
    }
    return [Row(arch, "", name, "", "", plan) for name, plan in plans.items()]


def compile_row(row: Row) -> dict:
    """What `row` compiles to, as the JSON report has it; an "error" in the place of resources when it does not."""
    described = asdict(replace(row, plan=None)) | {"kernel": row.plan.kernel}
    del described["plan"]
    try:
        return described | aot.resources_of(aot.compile_plan(row.plan, row.arch)).as_dict()
    except Exception as error:  # a compiler can fail in any way, and the report says how
        return described | {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def compile_all(rows: list[Row], jobs: int) -> list[dict]:
    """`compile_row` of every row, on `jobs` processes."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        return list(pool.map(compile_row, rows, chunksize=4))


_COLUMNS = ("arch", "kernel", "layer", "tile", "regs", "shared", "spill", "matrix", "TMA", "loop", "wait")


def cells(result: dict) -> tuple[str, ...]:
    """One result as the table's text."""
    name = f"{result['model']} {result['layer']}".strip()
    head = (f"sm_{result['arch']}", result["kernel"], name, result["tile"])
    if "error" in result:
        return (*head, result["error"], *[""] * (len(_COLUMNS) - len(head) - 1))
    matrix = f"{result['matrix_instructions']} {result['matrix_opcode']}" if result["matrix_instructions"] else "-"
    wait = "-" if result["wait_depth"] is None else str(result["wait_depth"])
    spill = f"{result['local_bytes'] or result['stack_bytes']} B" if result["spills"] else "-"
    tma, loop = (result[name] or "-" for name in ("tma_instructions", "loop_instructions"))
    numbers = (result["registers"], result["shared_bytes"], spill, matrix, tma, loop, wait)
    return (*head, *map(str, numbers))


def print_table(results: list[dict]) -> None:
    """The results as a table: rich's where it is installed, else aligned text."""
    lines = [cells(result) for result in results]
    title = "Kernels, compiled ahead of time (loop: SASS instructions; wait: wgmma groups left in flight)"
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(len(line[i]) for line in [_COLUMNS, *lines]) for i in range(len(_COLUMNS))]
        print(title)
        for line in [_COLUMNS, *lines]:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        return
    table = Table(title=title)
    for index, column in enumerate(_COLUMNS):
        table.add_column(column, justify="left" if index < 4 else "right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    # a pipe has no width to fit, and a table cut to 80 columns says nothing
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table)


def complaints(results: list[dict], dtype: str) -> list[str]:
    """What is wrong: kernels that do not compile, spills on sm_90, and convolutions there without wgmma.

    Full-precision float32 has no tensor core to reach.
    """
    wrong = []
    wanted = None if dtype == "float32" else "HGMMA"
    for result in results:
        name = f"sm_{result['arch']} {result['kernel']} {result['model']} {result['layer']}"
        if "error" in result:
            wrong.append(f"{name} does not compile: {result['error']}")
        elif result["arch"] == 90 and result["spills"]:
            wrong.append(f"{name} spills")
        elif (
            result["arch"] == 90
            and result["kernel"].startswith("conv_")
            and wanted not in (None, result["matrix_opcode"])
        ):
            wrong.append(f"{name} does not reach wgmma")
    return wrong


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES, help="compute capabilities, 90 for sm_90")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "tfloat32", "float32"), default="bfloat16")
    parser.add_argument("--mode", nargs="+", choices=MODES, default=MODES[:1], help="which ops' kernels")
    parser.add_argument("--classes", action="store_true", help="one of the kernels that differ in trip counts only")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="compiler processes")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    try:
        triton_version, compiled = _triton_results(options)
        ours = cuda_kernels.results(options.arch) if "cuda" in options.mode else []
    except (ImportError, OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    results = compiled + ours
    print_table(results)
    of_triton = f", triton {triton_version}, {options.dtype}, batch {BATCH}" if compiled else ""
    print(f"{len(results)} kernels in {time.monotonic() - start:.0f} s{of_triton}")
    if options.json:
        report = {"triton": triton_version, "dtype": options.dtype, "batch": BATCH, "kernels": results}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    wrong = complaints(compiled, options.dtype) + cuda_kernels.complaints(ours)
    wrong += cuda_kernels.ptxas_warnings() if ours else []
    print("\n".join(wrong), file=sys.stderr) if wrong else None
    return 1 if wrong else 0


def _triton_results(options: argparse.Namespace) -> tuple[str | None, list[dict]]:
    """Triton's version, and its kernels compiled; None and none where only the CUDA kernels were asked for."""
    modes = [mode for mode in options.mode if mode != "cuda"]
    if not modes:
        return None, []
    try:
        import triton
    except ImportError:
        raise ImportError("triton is not installed: `pip install 'triton>=3.6'`; no GPU is needed") from None
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set, and interpreted kernels cannot be compiled: unset it")
    rows = [row for arch in options.arch for row in rows_of(options.model, arch, options.dtype, modes=modes)]
    rows = one_of_each_class(rows) if options.classes else rows
    return triton.__version__, compile_all(rows, options.jobs)


if __name__ == "__main__":
    sys.exit(main())
