"""The harness of the mutation tests: what it says of a check that passes, fails, dies, and needs threads."""

import os

import pytest
import torch

from tests.support.planted_faults import outcome


class Switches:
    def __init__(self):
        self.planted = None

    def plant_fault(self, number):
        self.planted = number


def test_a_check_says_what_it_notices():
    switches = Switches()

    def run():
        assert switches.planted != 3, "noticed"

    assert outcome(switches, 2, run) == ""
    assert outcome(switches, 3, run).startswith("AssertionError: noticed")
    assert switches.planted is None, "the fault is another process's"
    assert outcome(switches, 0, lambda: os._exit(7)) == "crashes, exit code 7"


def test_an_endless_loop_ends():
    def run():
        while True:
            pass

    assert "exit code -" in outcome(Switches(), 0, run, seconds=1)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_check_may_compute_in_parallel_although_its_process_was_forked(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a = torch.randn(700, 700)
        assert (a @ a).isfinite().all() and a.exp().isfinite().all()  # the pool of threads is there
        assert outcome(Switches(), 0, lambda: torch.testing.assert_close(a @ a, a.mm(a))) == ""
    finally:
        torch.set_num_threads(before)
