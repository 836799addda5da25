"""Tuning: the default where nothing was measured, tables and their errors, the command without a GPU."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch

from fused_resnet import tuning
from fused_resnet.shapes import ConvShape
from fused_resnet.tuning import Choice, TileConfig, TuningTableError, lookup, tables
from fused_resnet.tuning.candidates import candidates
from fused_resnet.tuning.heuristics import ITEMSIZE, default, shared_bytes

OP = "conv_scale_shift_act"
SHAPE = ConvShape(8, 64, 14, 14, 128, 3, 3, (1, 1), (1, 1))
STEM = ConvShape(8, 3, 224, 224, 64, 7, 7, (2, 2), (3, 3))
TILE = TileConfig(64, 64, 32, num_warps=4, num_stages=3)
ENTRY = {
    "algorithm": "implicit_gemm",
    "tile": TILE.as_dict(),
    "microseconds": 12.5,
    "device": "a made-up GPU",
    "date": "2026-01-01",
    "commit": "0000000",
}


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """An empty directory of tables in the place of the package's."""
    monkeypatch.setenv(tables.DIRECTORY_VARIABLE, str(tmp_path))
    tables.forget()
    yield tmp_path
    tables.forget()


def write(table: object) -> str:
    """A table of OP on sm_90, as text or as what JSON makes of it; returns its path."""
    path = tuning.table_path(OP, 90)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(table if isinstance(table, str) else json.dumps(table))
    return str(path)


def table_of(entry: object, key: str | None = None, dtype: str = "bfloat16") -> dict:
    return {"schema": 1, "op": OP, "arch": 90, "entries": {dtype: {key or SHAPE.key(): entry}}}


def test_no_table_with_invented_entries_is_shipped():
    shipped = tuning.table_path(OP, 90).parents[1]
    assert (shipped / "README.md").exists()
    for path in shipped.glob("*/*.json"):
        assert tables.read_table(path), f"{path} is empty"


@pytest.mark.parametrize("arch", [80, 86, 90, 100, 120])
@pytest.mark.parametrize("dtype", sorted(ITEMSIZE))
@pytest.mark.parametrize("shape", [SHAPE, STEM, ConvShape(1, 17, 9, 9, 5, 3, 3)], ids=str)
def test_the_default_is_unmeasured_and_fits_in_shared_memory(directory, arch, dtype, shape):
    choice = lookup(OP, arch, dtype, shape)
    assert choice == default(arch, dtype, shape) and not choice.measured
    assert choice.tile.shared_bytes(ITEMSIZE[dtype]) <= shared_bytes(arch)
    assert choice.algorithm == "implicit_gemm" or arch >= 90


def test_grouped_and_dilated_convolutions_default_to_aten(directory):
    for odd in ({"groups": 2}, {"dilation": (2, 2)}):
        assert lookup(OP, 90, "bfloat16", dataclasses.replace(SHAPE, **odd)) == Choice("aten")


def test_a_small_batch_gets_smaller_tiles():
    small = default(90, "bfloat16", dataclasses.replace(SHAPE, n=1)).tile
    assert small.block_m < default(90, "bfloat16", dataclasses.replace(SHAPE, n=256)).tile.block_m


def test_a_table_decides_for_its_dtype_shape_and_architecture_alone(directory):
    path = tables.write_table(OP, 90, {("bfloat16", SHAPE.key()): ENTRY})
    assert path == directory / "sm_90" / f"{OP}.json"
    assert lookup(OP, 90, "bfloat16", SHAPE) == Choice("implicit_gemm", TILE, measured=True)
    assert not lookup(OP, 90, "float16", SHAPE).measured
    assert not lookup(OP, 80, "bfloat16", SHAPE).measured
    assert not lookup(OP, 90, "bfloat16", dataclasses.replace(SHAPE, n=9)).measured


def test_tables_are_merged_and_new_entries_win(directory):
    tables.write_table(OP, 90, {("bfloat16", SHAPE.key()): ENTRY, ("bfloat16", STEM.key()): ENTRY})
    aten = ENTRY | {"algorithm": "aten", "tile": None}
    tables.write_table(OP, 90, {("bfloat16", SHAPE.key()): aten})
    assert lookup(OP, 90, "bfloat16", SHAPE) == Choice("aten", measured=True)
    assert lookup(OP, 90, "bfloat16", STEM).tile == TILE
    assert not list(directory.rglob("*.partial"))


BAD_TABLES = {
    "not JSON": ("{", "is not JSON"),
    "not an object": ([1], "got list"),
    "a missing field": ({"schema": 1, "op": OP, "arch": 90}, "must hold exactly"),
    "an unknown field": (table_of(ENTRY) | {"note": ""}, "must hold exactly .* got .*'note'"),
    "another schema": (table_of(ENTRY) | {"schema": 2}, "schema 2, expected 1"),
    "another architecture": (table_of(ENTRY) | {"arch": 80}, "misplaced"),
    "an unknown dtype": (table_of(ENTRY, dtype="int8"), "dtype 'int8'"),
    "an entry that is no object": (table_of(3), "entry bfloat16 / n8_c64.*got 3"),
    "an entry's unknown field": (table_of(ENTRY | {"speed": 1}), "entry bfloat16 / n8_c64.*'speed'"),
    "an unknown algorithm": (table_of(ENTRY | {"algorithm": "magic"}), "entry .*algorithm must be one of .*'magic'"),
    "no tile": (table_of(ENTRY | {"tile": None}), "entry .*a tile goes with"),
    "a tile's unknown field": (table_of(ENTRY | {"tile": TILE.as_dict() | {"split_k": 2}}), "entry .*split_k"),
    "a tile out of range": (table_of(ENTRY | {"tile": TILE.as_dict() | {"num_stages": 99}}), "num_stages .*99"),
    "a tile not a power of two": (table_of(ENTRY | {"tile": TILE.as_dict() | {"block_m": 96}}), "power of two, got 96"),
    "a tile of text": (table_of(ENTRY | {"tile": TILE.as_dict() | {"block_m": "64"}}), "block_m must be an integer"),
    "a time of zero": (table_of(ENTRY | {"microseconds": 0}), "microseconds must be a positive number"),
    "no provenance": (table_of(ENTRY | {"device": ""}), "device must say where"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_table_that_makes_no_sense_is_one_error_with_file_and_entry(directory, name):
    table, message = BAD_TABLES[name]
    path = write(table)
    with pytest.raises(TuningTableError, match=message) as error:
        lookup(OP, 90, "bfloat16", SHAPE)
    assert path in str(error.value)


def test_a_bad_entry_is_not_written(directory):
    with pytest.raises(TuningTableError):
        tables.write_table(OP, 90, {("bfloat16", SHAPE.key()): ENTRY | {"algorithm": "magic"}})
    assert not list(directory.rglob("*.json"))


def test_forcing_ends_with_the_block(directory):
    with tuning.forced(Choice("aten")):
        assert lookup(OP, 90, "bfloat16", SHAPE) == Choice("aten")
    assert lookup(OP, 90, "bfloat16", SHAPE) == default(90, "bfloat16", SHAPE)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("shape", [SHAPE, STEM], ids=str)
def test_candidates_start_with_aten_and_the_default_and_fit(arch, shape):
    found = candidates(arch, "bfloat16", shape)
    assert found[0] == Choice("aten") and found[1] == default(arch, "bfloat16", shape)
    assert len(found) == len(set(found)) > 10
    assert all(choice.tile.shared_bytes(2) <= shared_bytes(arch) for choice in found[1:])
    assert not any(choice.measured for choice in found)


@pytest.mark.skipif(torch.cuda.is_available(), reason="runs the tuner in the interpreter")
def test_the_tuner_takes_the_fastest_candidate_that_is_right(directory, monkeypatch, capsys):
    pytest.importorskip("triton", reason="triton is not installed")
    from fused_resnet import use_backend
    from fused_resnet.backends.triton import launch
    from fused_resnet.tuner import measure

    right, wrong, broken = (Choice("implicit_gemm", TileConfig(16, 16, 16, 4, stages)) for stages in (2, 3, 4))
    times = {Choice("aten"): 3.0, right: 2.0, wrong: 1.0}
    monkeypatch.setattr(measure, "candidates", lambda *_: [Choice("aten"), right, wrong, broken])
    monkeypatch.setattr("triton.testing.do_bench", lambda call, return_mode: times[tables._forced.get()])
    run = launch.run

    def faulty(plan, tensors):
        if plan.num_stages == 4:
            raise RuntimeError("out of resource: shared memory")
        run(plan, tensors)
        if plan.num_stages == 3:
            tensors["y_ptr"].add_(1)

    monkeypatch.setattr(launch, "run", faulty)
    with use_backend("triton"):
        best, microseconds = measure.tune(ConvShape(1, 16, 4, 4, 16, 1, 1), 90, "float32", "cpu")
    assert (best, microseconds) == (right, 2000.0)
    printed = capsys.readouterr().out
    assert "times as far from float64 as rounding explains" in printed and "RuntimeError: out of resource" in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which the command would tune")
@pytest.mark.parametrize(("interpret", "message"), [("0", "sees none; nothing was written"), ("1", "TRITON_INTERPRET")])
def test_the_command_refuses_without_a_gpu(directory, interpret, message):
    environment = os.environ | {"TRITON_INTERPRET": interpret, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "fused_resnet.tuner"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 1 and message in result.stderr
    assert not list(directory.rglob("*"))


def test_the_command_finds_a_models_convolutions():
    from fused_resnet.tuner.measure import shapes_of

    shapes = shapes_of("resnet18", 4, 64)
    assert shapes[0] == ConvShape(4, 3, 64, 64, 64, 7, 7, (2, 2), (3, 3))
    assert len(shapes) == len(set(shapes)) == 11
