"""`python -m benchmarks.flow`: the picture of a step is what is counted now."""

from xml.etree import ElementTree

import pytest

from benchmarks import flow
from fused_resnet._torchvision import import_torchvision
from tests.support import ROOT


@pytest.fixture(scope="module")
def block() -> dict:
    return flow.measured()


def test_boxes_add_up_to_what_a_step_moves(block):
    ours, eager = block["rows"].values()
    for row, forward, backward in ((ours, 17, 30), (eager, 48, 66)):
        sums = {
            phase: sum(op["maps_read"] + op["maps_written"] for op in flow.ops_of(row, phase))
            for phase in ("forward", "backward")
        }
        assert sums == pytest.approx({"forward": forward, "backward": backward})


def test_the_picture_is_drawn_and_committed(block, tmp_path):
    assert flow.main(["--out", str(tmp_path / "new" / "step.svg")]) == 0
    drawn = (tmp_path / "new" / "step.svg").read_text()
    words = [element.text for element in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert {"conv1x1_bn_add_act", "4T", "native_batch_norm_backward x 3"} <= set(words)
    if import_torchvision() is not None:
        assert drawn == (ROOT / flow.OUT).read_text(), "run python -m benchmarks.flow and commit the picture"
