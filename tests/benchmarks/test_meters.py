"""The meters count what a hand can count, and their commands print, write and judge it."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional

import fused_resnet
from benchmarks import memory, traffic
from benchmarks.meters import traffic as traffic_meter
from benchmarks.meters.traffic import TrafficMode
from benchmarks.subjects import pairs

METER = ["--batch", "2", "--extent", "8", "--planes", "16", "--size", "32"]


def counted(call) -> tuple[int, int]:
    """Bytes read and written by the ops that `call` dispatches."""
    with TrafficMode() as meter:
        call()
    return sum(op.read for op in meter.ops), sum(op.written for op in meter.ops)


# ---- traffic, by hand; a map of 2 x 4 x 5 x 5 float32 is 800 bytes ----

MAP = 800
VECTOR = 16


@pytest.fixture
def x():
    return torch.randn(2, 4, 5, 5)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        pytest.param(lambda x: x.relu(), (MAP, MAP), id="relu"),
        pytest.param(lambda x: x.relu_(), (MAP, MAP), id="in-place"),
        pytest.param(lambda x: x + torch.empty_like(x), (2 * MAP, MAP), id="add-two"),
        pytest.param(lambda x: x + x, (MAP, MAP), id="add-itself"),
        pytest.param(lambda x: x.add_(torch.empty_like(x)), (2 * MAP, MAP), id="add_"),
        pytest.param(lambda x: x.view(2, 100).t().unsqueeze(0)[:, 1:].detach(), (0, 0), id="views"),
        pytest.param(lambda x: torch.empty_like(x), (0, 0), id="allocation"),
        pytest.param(lambda x: torch.zeros_like(x), (0, MAP), id="zeros"),
        pytest.param(lambda x: x.zero_(), (0, MAP), id="zero_"),
        pytest.param(lambda x: torch.empty_like(x).copy_(x), (MAP, MAP), id="copy_"),
        pytest.param(lambda x: torch.mul(x, 2, out=torch.empty_like(x)), (MAP, MAP), id="out="),
        pytest.param(lambda x: x[:, :2] * 2, (MAP // 2, MAP // 2), id="slice"),
        pytest.param(lambda x: x[:, :2] * x[:, 2:], (MAP, MAP // 2), id="two-regions"),
        pytest.param(lambda x: x[:, :1].expand(-1, 4, -1, -1) * x, (MAP + MAP // 4, MAP), id="expanded"),
        pytest.param(lambda x: torch.cat([x, x]), (MAP, 2 * MAP), id="list"),
        pytest.param(lambda x: x.to(torch.float64), (MAP, 2 * MAP), id="dtype"),
        pytest.param(lambda x: x.sum(), (MAP, 4), id="scalar-out"),
        pytest.param(lambda x: x.view(-1)[0].item(), (4, 0), id="item"),
        pytest.param(lambda x: x.sum((0, 2, 3)), (MAP, VECTOR), id="vector"),
        pytest.param(lambda x: torch._foreach_mul_([x, x[:0]], 2.0), (MAP, MAP), id="foreach"),
    ],
)
def test_traffic_of_an_op(call, expected, x):
    assert counted(lambda: call(x)) == expected


def test_traffic_of_a_convolution_and_its_backward(x):
    weight = torch.randn(6, 4, 3, 3, requires_grad=True)  # 864 bytes; the output, 2 x 6 x 5 x 5, is 1200
    x.requires_grad_()
    y = []
    assert counted(lambda: y.append(functional.conv2d(x, weight, padding=1))) == (MAP + 864, 1200)
    grad = torch.randn_like(y[0])
    assert counted(lambda: torch.autograd.grad(y[0], [x, weight], grad)) == (1200 + MAP + 864, MAP + 864)


def test_traffic_of_batch_norm_counts_running_statistics(x):
    mean, var, weight, bias = (torch.rand(4) for _ in range(4))
    # read: the map and four vectors; written: the map, two saved vectors, and the two that are updated in place
    assert counted(lambda: functional.batch_norm(x, mean, var, weight, bias, True)) == (
        MAP + 4 * VECTOR,
        MAP + 4 * VECTOR,
    )


def test_a_registered_op_is_the_unit_whatever_it_does_inside(x):
    weight, vectors = torch.randn(4, 4, 3, 3), [torch.rand(4) for _ in range(4)]
    expected = (MAP + 576 + 4 * VECTOR, MAP)
    for backend in ("reference", "onednn"):
        with fused_resnet.use_backend(backend), TrafficMode() as meter:
            fused_resnet.ops.conv_scale_shift_act(x, weight, *vectors, 1e-5, padding=(1, 1))
        assert [op.name for op in meter.ops] == ["fused_resnet::conv_scale_shift_act"]
        assert (meter.ops[0].read, meter.ops[0].written) == expected


def test_maps_are_told_from_parameters_and_phases_apart():
    conv = nn.Conv2d(4, 2, 3, padding=1, bias=False)
    x = torch.randn(2, 4, 3, 3)  # of the weight's own shape, so not a map here
    assert not traffic_meter.is_map_of(2, [conv])(x) and traffic_meter.is_map_of(2, [nn.Conv2d(4, 2, 1)])(x)
    x = torch.randn(2, 4, 5, 5)
    ops = traffic_meter.block_step(conv, x, torch.randn(2, 2, 5, 5), traffic_meter.is_map_of(2, [conv]))
    assert [(op.phase, op.name) for op in ops] == [
        ("forward", "aten::convolution"),
        ("backward", "aten::convolution_backward"),
    ]
    assert [op.maps for op in ops] == [MAP + MAP // 2, MAP // 2 + 2 * MAP]
    assert [op.total - op.maps for op in ops] == [288, 2 * 288]
    assert traffic_meter.phase_sum(ops, "backward", maps=True) == 2 * MAP + MAP // 2


# What eager's blocks move and save, from the layers' shapes: forward, backward, saved.
EAGER = {"bottleneck, identity": (48, 66, 12), "basic, identity": (15, 21, 4)}
# What DESIGN promises of a block in a chain, whose gradient arrives masked.
PROMISED = {"bottleneck, identity, inside a chain": (17, 30, 6), "basic, identity, inside a chain": (7, 16, 3)}


@pytest.mark.parametrize("case", pairs.CASES, ids=lambda case: case.name)
def test_blocks_in_feature_maps(case):
    options = traffic.parser().parse_args(["--planes", "16", "--batch", "2", "--extent", "8"])
    device = torch.device("cpu")
    moved, saved = (meter.measure_block(case, options, device)["rows"] for meter in (traffic, memory))
    found = {
        label: (*(row[f"{phase}_maps"] for phase in traffic.PHASES), saved[label]["maps"])
        for label, row in moved.items()
    }
    for label, row in moved.items():
        assert any(op["op"].startswith("fused_resnet::") for op in row["ops"]) == (label == "fused_resnet")
    ours, eager = found.values()
    assert eager == pytest.approx(EAGER.get(case.name, eager)) and ours == pytest.approx(PROMISED.get(case.name, ours))
    assert sum(ours[:2]) < sum(eager[:2]) and ours[2] < eager[2]


@pytest.mark.parametrize("command", [traffic, memory], ids=["traffic", "memory"])
def test_the_projects_goals(command, capsys):
    assert command.main(["--shapes", "--batch", "256", "--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("command", [traffic, memory], ids=["traffic", "memory"])
def test_shapes_alone_give_the_same_figures(command, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "CASES", [case for case in pairs.CASES if case.stride == 2 and case.bottleneck])
    documents = []
    for more in ([], ["--shapes"]):
        assert command.main([*METER, "--model", "resnet18", *more, "--json", str(tmp_path / "a.json")]) == 0
        documents.append(json.loads((tmp_path / "a.json").read_text()))
    for real, shapes in zip(*(document["blocks"] + document["models"] for document in documents), strict=True):
        for row, figures in real["rows"].items():
            keys = ("maps", "all") if command is memory else ("forward_maps", "forward_all", "step_maps", "step_all")
            assert [shapes["rows"][row][key] for key in keys] == pytest.approx([figures[key] for key in keys], rel=0.02)
    assert command.main([*METER, "--shapes", "--device", "auto"]) == 2
    assert "--shapes computes nothing" in capsys.readouterr().err


def test_traffic_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(traffic, "CASES", pairs.CASES[1:2])
    target = tmp_path / "traffic.json"
    assert traffic.main([*METER, "--model", "resnet18", "--ops", "--json", str(target)]) == 0
    document = json.loads(target.read_text())
    assert [entry["block"] for entry in document["blocks"]] == ["bottleneck, identity"]
    (entry,) = document["models"]
    for row in entry["rows"].values():
        assert row["step_all"] == pytest.approx(sum(op["all"] for op in row["ops"]))
        assert row["step_all"] > row["step_maps"] == row["forward_maps"] + row["backward_maps"] > 0
    assert entry["ratio"] == entry["rows"]["fused_resnet"]["step_all"] / entry["rows"]["torchvision"]["step_all"]
    assert 0 < entry["maps_ratio"] < 1
    printed = capsys.readouterr().out
    assert "bottleneck, identity: torchvision" in printed and "aten::convolution_backward" in printed


def test_a_missed_goal_is_a_failure_only_when_asked(monkeypatch, capsys):
    case = pairs.BlockCase("basic", False, "identity", goal=(1, 100, 0.5))
    for command in (traffic, memory):
        monkeypatch.setattr(command, "CASES", (case,))
        assert command.main([*METER, "--model"]) == 0
        assert command.main([*METER, "--model", "--check"]) == 1
    said = capsys.readouterr().err
    assert "GOAL MISSED basic: forward moves" in said and "goal 1T" in said and "backward" not in said
    assert "GOAL MISSED basic: saves" in said


# ---- saved bytes, by hand ----


def test_saved_storages_count_once_and_without_what_exists_anyway(x):
    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(1, 4, 1, 1))

        def forward(self, x):
            y = (x * self.weight).exp()  # saves the input and the parameter, then its result
            return y * y.view(2, 100).view_as(y)  # saves the result again, and a view of it

    (saved,) = memory.saved_by(Square(), x.requires_grad_())
    assert saved == {"bytes": MAP, "shape": [2, 4, 5, 5], "dtype": "torch.float32", "map": True}


def test_memory_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(memory, "CASES", pairs.CASES[:1])
    target = tmp_path / "memory.json"
    assert memory.main([*METER, "--model", "resnet18", "--json", str(target)]) == 0
    (entry,) = json.loads(target.read_text())["models"]
    assert entry["rows"]["fused_resnet"]["maps"] < entry["rows"]["torchvision"]["maps"]
    for row in entry["rows"].values():
        assert row["all"] * 2 == sum(storage["bytes"] for storage in row["saved"]) > 0
    assert "resnet18: torchvision" in capsys.readouterr().out


@pytest.mark.parametrize("command", [traffic, memory], ids=["traffic", "memory"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "--batch 0: expected at least 1"),
        (["--planes", "17"], "--planes 17: expected an even number"),
        (["--device", "tpu"], "--device tpu: not a device"),
        (["--model", "freeze"], "--model freeze: expected one of resnet18, "),
        (["--backend", "cublas"], "unknown backend 'cublas'"),
    ],
    ids=["batch", "planes", "device", "model", "backend"],
)
def test_meters_refuse_bad_arguments(command, arguments, message, capsys):
    assert command.main([*METER, *arguments]) == 2
    assert message in capsys.readouterr().err
