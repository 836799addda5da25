"""The compiled extension `fused_resnet._C`: how it is built, what it needs to be imported, and its machine code.

What needs nvcc is skipped without; nothing here needs a GPU.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.meters import cuda_kernels
from fused_resnet.backends.cuda import availability
from tests.support import ROOT, hang
from tests.support.recipe import recipe
from tests.support.shared import once

LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so", "build")
SIMPLE = {
    "bn_add_act",
    "bn_act_backward",
    "bn_backward_apply",
    "bn_relu_maxpool",
    "bn_relu_maxpool_backward",
    "global_avg_pool",
    "channel_stats",
    "merge_partials",
    "bn_finalize",
    "sum_partials",
}
CSRC = ROOT / "csrc"
README = CSRC / "README.md"
HELPERS = {"merge_partials", "sum_partials", "sum_gram_kernel", "sum_products_kernel"}  # add up partials, no more
CONVOLUTIONS = {"conv3x3_halo_act", "conv3x3_halo_stats"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of what a build reads, so that building leaves nothing behind."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in ("fused_resnet", "csrc"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=LEFT_OUT)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md"):
        shutil.copy(ROOT / name, copy)
    return copy


def pip_install(tree: Path, target: Path, **environment: str) -> subprocess.CompletedProcess:
    # where what builds it is there already, nothing need be downloaded
    is_there = all(importlib.util.find_spec(name) for name in ("setuptools", "pybind11", "ninja"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-cache-dir",
        *(["--no-build-isolation"] if is_there else []),
        "--target",
        str(target),
        str(tree),
    ]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=hang.SECONDS)


@pytest.fixture(scope="module")
def installed(checkout, tmp_path_factory) -> Path:
    """The package as `pip install .` leaves it, for sm_80 alone: Hopper's kernels take a minute, and are in `rows`."""
    if sys.platform != "linux" or recipe().find_nvcc() is None:
        pytest.skip("there is no nvcc to compile with")
    target = tmp_path_factory.mktemp("installed")
    result = pip_install(checkout, target, FUSED_RESNET_CUDA_ARCHS="80")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return target


ALONE = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("fused_resnet._C", sys.argv[1])
extension = importlib.util.module_from_spec(spec)
spec.loader.exec_module(extension)
loaded = {line.split("/")[-1].strip() for line in open("/proc/self/maps") if ".so" in line}
print([name for name in loaded if any(word in name for word in ("torch", "c10", "libcuda"))], "torch" in sys.modules)
print(sorted(extension.kernels().items()))
"""


def test_the_installed_extension_loads_without_torch_and_without_a_driver(installed):
    (library,) = (installed / "fused_resnet").glob("_C*.so")
    result = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(library)], capture_output=True, text=True, timeout=hang.SECONDS
    )
    assert result.returncode == 0, result.stderr
    foreign, kernels = result.stdout.splitlines()
    assert foreign == "[] False"
    assert kernels == str([(name, "sm_80") for name in sorted(SIMPLE)])


def test_what_is_installed_says_what_it_is_and_depends_on_no_version_of_torch(installed):
    (metadata,) = installed.glob("fused_resnet-*.dist-info/METADATA")
    assert {"torch>=2.11", "numpy"} == set(re.findall(r"^Requires-Dist: ([^;\n]*)$", metadata.read_text(), re.M))
    (wheel,) = installed.glob("fused_resnet-*.dist-info/WHEEL")
    assert f"Tag: cp{sys.version_info[0]}{sys.version_info[1]}-" in wheel.read_text()
    assert not [path for path in installed.rglob("*") if path.suffix in (".cu", ".cuh", ".cpp", ".h")]


INFO = "import fused_resnet.info as info; print(info.__file__); print(info.report()['extension'])"


def test_info_says_what_was_compiled(installed, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", INFO]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=hang.SECONDS
    )
    where, state = result.stdout.splitlines()
    assert where.startswith(str(installed)), result.stderr
    assert "'on': True" in state and f"kernels: {len(SIMPLE)} for sm_80;" in state


# ---- what goes wrong in a build, in words ----


def fake_nvcc(folder: Path, script: str) -> Path:
    """A toolkit whose nvcc is this script."""
    (folder / "bin").mkdir(parents=True)
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text(f"#!/bin/sh\n{script}\n")
    nvcc.chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 3", ["does not run", "repair the CUDA toolkit"]),
        ("echo release 11.8, V11.8.89", ["is of CUDA 11.8", "need 12.5"]),
        (
            'case "$1" in --version) echo release 13.0;; *) echo no space left; exit 1;; esac',
            ["failed", "no space left"],
        ),
    ],
)
def test_a_broken_compiler_is_an_error_and_no_silent_install(checkout, tmp_path, script, words):
    if sys.platform != "linux":
        pytest.skip("the extension is compiled on Linux alone")
    home = fake_nvcc(tmp_path / "cuda", script)
    result = pip_install(checkout, tmp_path / "target", CUDA_HOME=str(home), FUSED_RESNET_CUDA_ARCHS="sm_90a")
    assert result.returncode != 0 and not (tmp_path / "target").exists()
    missing = [word for word in [*words, "FUSED_RESNET_CUDA_ARCHS=none"] if word not in result.stdout + result.stderr]
    assert not missing, result.stderr[-2000:]


# ---- the extension of this checkout ----

needs_extension = pytest.mark.skipif(
    availability.extension() is None, reason="fused_resnet._C was not compiled: no nvcc when the package was installed"
)


@needs_extension
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: a launch at these addresses would corrupt it")
def test_a_launch_without_a_gpu_says_so():
    extension = availability.extension()
    assert "driver" in extension.device_problem()
    with pytest.raises(RuntimeError, match=r"global_avg_pool of \(1, 2, 2, 8\) could not be launched: .*NVIDIA driver"):
        extension.global_avg_pool(16, 16, 0, 1, 2, 2, 8, 0)


@needs_extension
def test_arguments_are_refused_before_a_launch():
    extension = availability.extension()
    with pytest.raises(ValueError, match=r"global_avg_pool of \(1, 2, 2, 9\): x has 9 channels, .* multiples of 8"):
        extension.global_avg_pool(16, 16, 0, 1, 2, 2, 9, 0)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[dict]:
    """The kernels of the extension, as `python -m benchmarks.kernels --mode cuda` reports them."""
    if availability.extension() is None:
        pytest.skip("fused_resnet._C was not compiled: no nvcc when the package was installed")
    if cuda_kernels.disassembler() is None:
        pytest.skip("there is no cuobjdump: neither a CUDA toolkit's nor triton's")
    return once(tmp_path_factory, "cuda_kernels", lambda: cuda_kernels.results((80, 90)))


def test_every_kernel_was_compiled_for_every_architecture(rows):
    compiled = availability.extension().kernels()
    assert set(compiled) >= SIMPLE
    if "sm_90a" in compiled["bn_add_act"]:
        assert {compiled.get(name) for name in CONVOLUTIONS} == {"sm_90a"}
    for name in SIMPLE:
        listed = {int(arch) for arch in re.findall(r"sm_(\d+)", compiled[name])} & {80, 90}
        assert {row["arch"] for row in rows if row["kernel"] == name} == listed
        assert len({row["tile"] for row in rows if row["kernel"] == name}) in (1, 2, 4, 6)


def test_no_kernel_spills_or_has_too_much_shared_memory_or_lacks_wgmma_and_tma(rows):
    assert cuda_kernels.complaints(rows) == []


def test_the_readme_of_the_kernels_says_what_they_need(rows):
    listed = re.findall(r"^\| `([\w/]+)` \| `(\w+)` \|.*\| (\d+)(?: to (\d+))? \| (\d+) \|", README.read_text(), re.M)
    assert {name for _, name, *_ in listed} == {row["kernel"] for row in rows} - HELPERS
    for folder, *_ in listed:
        assert (CSRC / "kernels" / folder).is_dir()
    if not any("cuda13.0" in log.parent.name for log in cuda_kernels.build_logs()):
        pytest.skip("another nvcc may give them other registers")
    for _, name, least, most, shared in listed:
        of_it = [row for row in rows if row["kernel"] == name]
        registers = [row["registers"] for row in of_it]
        assert (int(least), int(most or least)) == (min(registers), max(registers)), name
        assert int(shared) == max(row["shared_bytes"] for row in of_it), name


def test_ptxas_has_not_serialised_wgmma():
    if not cuda_kernels.build_logs():
        pytest.skip("the extension was not compiled from this checkout, so that ptxas' words are not here")
    assert cuda_kernels.ptxas_warnings() == []


def test_the_report_would_complain():
    """Of each thing that it holds kernels to."""
    good = {"arch": 90, "kernel": "conv", "tile": "", "spills": False, "shared_bytes": 9, "HGMMA": 1, "UTMALDG": 1}
    assert cuda_kernels.complaints([good]) == []
    bad = {"spills": True, "shared_bytes": 228 * 1024, "HGMMA": 0, "UTMALDG": 0}
    for name, value in bad.items():
        assert len(cuda_kernels.complaints([good | {name: value}])) == 1
    assert "does not list" in cuda_kernels.complaints([good | {"shared_bytes": 0}])[0]
    line = "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized"
    assert cuda_kernels.PTXAS_WARNING.search(line)


def test_symbols_are_read():
    symbol = "_ZN12conv3x3_halo19conv3x3_halo_kernelIL11ElementType1ELi64ELi2ELNS_8EpilogueE1EEEvNS_10ParametersE"
    assert cuda_kernels.demangled(symbol) == ("conv3x3_halo_kernel", [1, 64, 2, 1])
    symbol = "_ZN4stem11stem_kernelIL11ElementType0ELN7conv1x18EpilogueE1EEEvNS_10ParametersE"
    assert cuda_kernels.demangled(symbol) == ("stem_kernel", [0, 1])
    assert cuda_kernels.demangled("_ZN7kernels12sum_partialsENS_11SumPartialsE") == ("sum_partials", [])
