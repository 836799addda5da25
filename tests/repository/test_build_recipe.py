"""What setup.py decides: whether the extension is compiled, for what, by how many compilers; what a build shows."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import pytest
import torch

from tests.support import hang
from tests.support import recipe as recipes
from tests.support.recipe import ARCHS, SETUP


@pytest.fixture(scope="module")
def recipe():
    return recipes.recipe()


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("", []),
        ("none", []),
        ("default", ["sm_80", "sm_90a", "compute_90"]),
        ("80", ["sm_80"]),
        ("80;90a", ["sm_80", "sm_90a"]),
        (" sm_80, compute_90 ", ["sm_80", "compute_90"]),
    ],
)
def test_architectures_are_asked_for_by_name(recipe, monkeypatch, asked, names):
    monkeypatch.setenv(ARCHS, asked)
    assert recipe.architectures() == names


def test_an_architecture_that_is_none_is_refused(recipe, monkeypatch):
    monkeypatch.setenv(ARCHS, "sm_80 hopper")
    with pytest.raises(recipe.CompileError, match="expected names such as .* got .hopper"):
        recipe.architectures()


CPU, CUDA = ("2.13.0+cpu", False), ("2.13.0", True)
NOT_SET = None


@pytest.mark.parametrize(
    ("asked", "commanded", "linux", "nvcc", "torch", "said"),
    [
        # beside a torch with CUDA, or before there is one
        (NOT_SET, False, True, "nvcc", CUDA, ""),
        (NOT_SET, False, True, "nvcc", None, ""),
        # it would serve nobody
        (NOT_SET, False, True, "nvcc", CPU, "2.13.0+cpu, has no CUDA; FUSED_RESNET_CUDA_ARCHS=default asks for it"),
        # it cannot be
        (NOT_SET, False, True, None, CUDA, "no nvcc was found"),
        (NOT_SET, False, False, "nvcc", CUDA, "on Linux alone"),
        # asked for by command
        (NOT_SET, True, True, "nvcc", CPU, ""),
        (NOT_SET, True, True, None, CUDA, "no nvcc was found"),
        # asked for by name
        ("default", False, True, "nvcc", CPU, ""),
        ("sm_80", False, True, "nvcc", CPU, ""),
        # asked not to
        ("none", False, True, "nvcc", CUDA, "FUSED_RESNET_CUDA_ARCHS=none"),
        ("none", True, True, "nvcc", CUDA, "FUSED_RESNET_CUDA_ARCHS=none"),
        (" ", True, True, None, CUDA, "FUSED_RESNET_CUDA_ARCHS= leaves"),
    ],
)
def test_it_is_compiled_where_it_serves(recipe, asked, commanded, linux, nvcc, torch, said):
    reason = recipe.decide(asked, commanded, linux, nvcc, torch)
    assert said in reason if said else reason == ""


@pytest.mark.parametrize(("linux", "nvcc", "words"), [(True, None, "no nvcc is found"), (False, "nvcc", "on Linux")])
def test_what_is_asked_for_by_name_and_cannot_be_is_an_error(recipe, linux, nvcc, words):
    with pytest.raises(recipe.CompileError, match=f"FUSED_RESNET_CUDA_ARCHS is set, but .*{words}"):
        recipe.decide("sm_90a", False, linux, nvcc, CUDA)


def test_the_decision_rests_on_what_is_here(recipe, monkeypatch):
    monkeypatch.setattr(recipe, "find_nvcc", lambda: "nvcc")
    monkeypatch.setattr(recipe.sys, "platform", "linux")
    monkeypatch.setattr(recipe.sys, "argv", ["setup.py", "bdist_wheel"])
    monkeypatch.setattr(recipe, "installed_torch", lambda folders: CPU)
    monkeypatch.delenv(ARCHS, raising=False)
    assert "has no CUDA" in recipe.left_out()
    monkeypatch.setattr(recipe.sys, "argv", ["setup.py", "build_ext", "--inplace"])
    assert recipe.left_out() == ""
    monkeypatch.setenv(ARCHS, "none")
    monkeypatch.setattr(recipe, "find_nvcc", lambda: pytest.fail("looked for nvcc, which nobody wants"))
    assert "FUSED_RESNET_CUDA_ARCHS=none" in recipe.left_out()


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n", CPU),
        ("__version__ = '2.13.0'\ndebug = False\ncuda: Optional[str] = '13.0'\n", CUDA),
        ("__version__ = '2.12.0+rocm7'\ncuda = None\nhip = '7.0'\n", ("2.12.0+rocm7", False)),
        ("version = 'of a form that nobody knows'\n", ("of no version", True)),
    ],
)
def test_the_torch_of_a_folder_is_read_and_not_imported(recipe, tmp_path, lines, found):
    assert recipe.installed_torch([str(tmp_path)]) is None
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (tmp_path / "torch" / "version.py").write_text(lines)
    assert recipe.installed_torch(["nowhere", str(tmp_path)]) == found


def test_the_torch_that_is_installed_is_seen_from_an_isolated_build():
    """pip's isolation takes site-packages off sys.path."""
    code = (
        "import sys, runpy, setuptools, setuptools.command.build_ext, setuptools.command.build_py\n"
        "setuptools.setup = lambda **arguments: None\n"
        "sys.path[:] = [folder for folder in sys.path if not folder.endswith('-packages')]\n"
        "recipe = runpy.run_path(sys.argv[1])\n"
        "print(recipe['installed_torch'](recipe['site_packages']()))\n"
    )
    if not (Path(sysconfig.get_path("purelib")) / "torch").is_dir():
        pytest.skip("torch is not installed where this Python installs")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", code, str(SETUP)]
    result = subprocess.run(
        command, env=environment | {ARCHS: "none"}, capture_output=True, text=True, timeout=hang.SECONDS
    )
    assert result.stdout.strip() == str((torch.__version__, torch.version.cuda is not None)), result.stderr


def test_a_build_shows_each_line_as_it_comes_and_that_it_lives(recipe, monkeypatch):
    """The command goes on only once its first line and a sign of life have been seen."""
    monkeypatch.setattr(recipe, "TICK_S", 0.01)
    shown = []
    printed = threading.Event()

    def show(line, flush):
        shown.append(line)
        if len(shown) > 1 and "first" in shown and any(each.startswith("compiling since") for each in shown):
            printed.set()

    receiver, sender = os.pipe()
    monkeypatch.setattr(recipe, "print", show, raising=False)
    threading.Thread(target=lambda: (printed.wait(20), os.write(sender, b"go")), daemon=True).start()
    code = f"import os, sys; print('first', flush=True); os.read({receiver}, 2); print('last'); sys.exit(3)"
    popen = functools.partial(subprocess.Popen, pass_fds=[receiver])
    monkeypatch.setattr(recipe.subprocess, "Popen", popen)
    assert recipe.run_aloud([sys.executable, "-c", code]) == (3, ["first", "last"])
    assert printed.is_set() and shown.index("first") < shown.index("last")


def test_a_toolkit_that_is_named_and_not_there_is_refused(recipe, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(recipe.CompileError, match="holds no bin/nvcc"):
        recipe.find_nvcc()


def test_kernels_of_hopper_are_compiled_for_hopper_alone(recipe, monkeypatch):
    monkeypatch.setattr(recipe, "find_nvcc", lambda: "/a b/nvcc")
    monkeypatch.setenv(ARCHS, "sm_80 sm_90a compute_90")
    (extension,) = recipe.compiled_extensions()
    text = recipe.ninja_file(extension, "headers", Path("_C.so"))
    flags = dict(re.findall(r"^build (\S+)\.o: compile.*?\n.*?\n  flags = (.*)$", text, re.M))
    anywhere, hopper = flags["kernels-passes-add_act"], flags["kernels-conv3x3-forward-launch"]
    assert "arch=compute_80,code=sm_80" in anywhere and "code=compute_90" in anywhere
    assert re.findall(r"-gencode=\S+", hopper) == ["-gencode=arch=compute_90a,code=sm_90a"]
    assert all("-Werror" in each for each in flags.values()) and all("NDEBUG" in each for each in flags.values())
    monkeypatch.setenv(ARCHS, "sm_80")
    (extension,) = recipe.compiled_extensions()
    assert not [source for source in extension.sources if "conv" in source]


@pytest.mark.parametrize(("cores", "gigabytes", "jobs"), [(8, 64, 8), (8, 5, 2), (2, 1, 1)])
def test_compilers_run_in_parallel_within_memory(recipe, monkeypatch, tmp_path, cores, gigabytes, jobs):
    monkeypatch.delenv("MAX_JOBS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cores))
    monkeypatch.setattr(Path, "read_text", lambda path: f"MemTotal: 1 kB\nMemAvailable:  {gigabytes << 20} kB\n")
    assert recipe.jobs() == jobs
    monkeypatch.setenv("MAX_JOBS", "3")
    assert recipe.jobs() == 3
