"""`python -m benchmarks.fuzz`: agrees where it should, and finds what is planted."""

import json

import pytest
import torch

from benchmarks import fuzz
from fused_resnet.backends import reference


@pytest.fixture(autouse=True)
def threads():
    """The command sets the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_random_blocks_and_networks_agree(tmp_path):
    said, path = [], tmp_path / "fuzz.json"
    assert fuzz.main(["--count", "10", "--processes", "1", "--json", str(path)], said.append) == 0, said
    assert "10 cases, 0 disagree" in said[-1]
    written = json.loads(path.read_text())
    assert len(written["shares"]) == 10 and written["shares"][-1] <= 1 and not written["disagreements"]


def test_the_cases_are_of_every_kind():
    described = " ".join(fuzz.drawn(case).described for case in range(120))
    kinds = ("BasicBlock(", "Bottleneck(", "CifarResNet(", "ResNet(", "projection", "option_a", "identity", "groups")
    for kind in (*kinds, "trains", "infers", "frozen", "float16", "bfloat16", "float32", "onednn", "reference", "auto"):
        assert kind in described, kind


def test_a_case_is_the_same_at_every_call():
    one, again = fuzz.drawn(11), fuzz.drawn(11)
    assert one.described == again.described and torch.equal(one.x, again.x)
    assert all(torch.equal(a, b) for a, b in zip(one.model.state_dict().values(), again.model.state_dict().values()))


def test_a_planted_error_is_found_and_can_be_run_again(monkeypatch):
    right = reference.bn_finalize

    def wrong(partials, bn_weight, bn_bias, eps):
        return right(partials, bn_weight, bn_bias, 2 * eps)

    monkeypatch.setattr(reference, "bn_finalize", wrong)
    said = []
    assert fuzz.main(["--count", "16", "--processes", "1"], said.append) == 1
    assert "disagree" in said[-1] and not said[-1].startswith("16 cases, 0 ")
    case = said[0].partition("--case ")[2]
    assert "FAILED" in said[0] and fuzz.main(["--case", case]) == 1


def test_a_case_that_raises_is_a_finding(monkeypatch):
    monkeypatch.setattr(fuzz, "rows_of", lambda subject: 1 / 0)
    assert "ZeroDivisionError" in fuzz.check(3).problem


@pytest.mark.parametrize("wrong", [["--count", "0"], ["--processes", "0"], ["--case", "-1"]])
def test_arguments_that_cannot_be_used(wrong):
    with pytest.raises(SystemExit) as stopped:
        fuzz.main(wrong)
    assert stopped.value.code == 2
