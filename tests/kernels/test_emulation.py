"""The emulator that CUDA kernels run on in CI: its arithmetic, and every rule that it holds them to."""

import ctypes
import importlib.util

import pytest

from tests.support import emulated

pytestmark = emulated.needs_compiler


@pytest.mark.parametrize(
    "check",
    [
        "wgmma bf16, A and B K-major",
        "wgmma bf16, A M-major",
        "wgmma bf16, B N-major",
        "wgmma f16, A M-major, B N-major",
        "wgmma, B starts inside the swizzle pattern",
        "warp matrices",
        "TMA box",
    ],
)
def test_arithmetic_equals_plain_loops(check):
    function = emulated.library("emulation/checks/machine.cpp").check_arithmetic
    function.restype = ctypes.c_char_p
    message = function(check.encode())
    assert message is None, message.decode()


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("bounds", "out of bounds: shared address 0x3000"),
        ("alignment", "misaligned"),
        ("uninitialised", "which was never written"),
        ("race", "race: generic write of 0x0 is not ordered after a write by warp 0"),
        ("in flight", "while a TMA load into it is in flight"),
        ("unfenced", "without fence.proxy.async"),
        ("wgmma.fence", "wgmma without wgmma.fence"),
        ("wgmma pending", "while wgmma or a TMA store still reads it"),
        ("mbarrier init", "was never initialised"),
        ("mbarrier fence", "initialised without fence.mbarrier_init"),
        ("deadlock", "deadlock\n  128 threads from thread 0 on wait for mbarrier 0x2000 parity 0"),
        ("expect_tx", "-4096 B missing"),
        ("store pending", "exit with a TMA store that was not waited for"),
        ("registers", "setmaxnreg 250 is not a multiple of 8"),
        ("named barrier", "named barrier 1: 96 threads expected, 64 given"),
        ("warp_uniform", "lanes hold"),
    ],
)
def test_a_broken_rule_is_named(rule, said):
    function = emulated.library("emulation/checks/machine.cpp").check_rule
    function.restype = ctypes.c_char_p
    message = function(rule.encode())
    assert message is not None, f"nothing was said of a kernel that breaks the rule {rule!r}"
    assert said in message.decode()


@pytest.mark.parametrize("seed", range(6))
def test_a_cluster_exchanges_what_was_sent(seed):
    function = emulated.library("emulation/checks/cluster.cpp").check_cluster
    function.restype = ctypes.c_char_p
    message = function(seed)
    assert message is None, message.decode()


ENDS_EARLY = "block 0 may end before another CTA of its cluster has used its shared memory for the last time"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("remote bounds", ["store from another CTA out of bounds: shared address 0x1010"]),
        ("remote address", ["generic write out of bounds: shared address 0x1000000"]),
        ("rank", ["rank 4 of a cluster of 4"]),
        ("two CTAs", ["store to another CTA than that of its mbarrier"]),
        ("no cluster_sync", ["before a barrier ordered this after its initialisation", "was never initialised"]),
        ("in flight", ["generic read of 0x400 while a store from another CTA into it is in flight"]),
        ("not taken", ["store from another CTA of 0x400 is not ordered after a write by warp 0", "is in flight"]),
        ("proxy", ["TMA store of 0x400, where another CTA has stored something"]),
        ("expect_tx", ["mbarrier 0x1000 parity 0 (phase 0, 0 of 1 arrivals and 16 B missing)"]),
        ("early end", [ENDS_EARLY]),
        ("early credit", [ENDS_EARLY]),
        ("missing a thread", ["block 1\n  63 threads from thread 1 on wait for cluster barrier"]),
    ],
)
def test_a_broken_rule_of_the_cluster_is_named(rule, said, seed):
    """Under either schedule, though not in the same words where it decides who comes first."""
    function = emulated.library("emulation/checks/cluster.cpp").check_cluster_rule
    function.restype = ctypes.c_char_p
    message = function(rule.encode(), seed)
    assert message is not None, f"nothing was said of a kernel that breaks the rule {rule!r}"
    assert any(words in message.decode() for words in said), message.decode()


def test_generated_header_is_what_its_generator_writes():
    path = emulated.CSRC / "device" / "ptx" / "generate_wgmma.py"
    spec = importlib.util.spec_from_file_location("generate_wgmma", path)
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert (emulated.CSRC / "device" / "ptx" / "wgmma.cuh").read_text() == generator.header()
