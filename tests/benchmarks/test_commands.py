"""The commands that measure: they run, write what they promise, and say when something is wrong."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import fused_resnet
from benchmarks import inference, layers
from benchmarks.subjects import candidates
from benchmarks.subjects import peers as peer_table

TINY = ["--model", "resnet18", "--size", "64", "--rounds", "2", "--seconds", "0", "--device", "cpu", "--quiet"]


def run_inference(folder: Path, *arguments: str) -> tuple[int, dict]:
    status = inference.main([*TINY, "--pause", "0", "--out", str(folder), *arguments])
    return status, json.loads((folder / "inference.json").read_text())


def test_inference_writes_what_it_promises(tmp_path, capsys):
    status, document = run_inference(tmp_path, "--batch", "1", "3")
    assert status == 0
    assert (tmp_path / "inference.png").read_bytes().startswith(b"\x89PNG")
    assert document["model"] == "resnet18" and document["photographs"] == ["china.jpg", "flower.jpg"]
    assert {"device", "cpu", "threads", "versions", "commit", "date"} <= set(document["environment"])
    assert [result["batch"] for result in document["batches"]] == [1, 3]
    for result in document["batches"]:
        rows = {row["label"]: row for row in result["rows"]}
        ours = {"fused_resnet frozen", "fused_resnet", "fused_resnet channels_last"}
        assert set(rows) == ours | {"torchvision", "torchvision channels_last"}
        for label, row in rows.items():
            assert row["status"] == "ok" and len(row["samples_ms"]) == result["rounds"] == 2
            assert row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]
            assert row["error"]["relative_rms"] < 1e-5 and row["error"]["top1_agreement"] == 1, label
            assert row["speedup_vs_default"] == pytest.approx(rows["torchvision"]["median_ms"] / row["median_ms"])
        assert rows["torchvision channels_last"]["speedup_vs_channels_last"] == 1
    printed = capsys.readouterr().out
    assert "resnet18, batch 3, 64 x 64, 2 rounds" in printed and "fused_resnet frozen" in printed


def test_inference_without_torchvision_compares_with_the_reference(monkeypatch, tmp_path):
    monkeypatch.setattr(candidates, "import_torchvision", lambda: None)
    status, document = run_inference(tmp_path, "--batch", "1")
    assert status == 0
    assert document["baseline"].startswith("torchvision is not installed")
    labels = {row["label"] for row in document["batches"][0]["rows"]}
    assert {"reference", "reference channels_last", "fused_resnet frozen"} <= labels


def test_inference_takes_a_weights_file(tmp_path):
    torch.save(fused_resnet.resnet18().state_dict(), tmp_path / "own.pth")
    status, document = run_inference(tmp_path, "--batch", "1", "--weights", str(tmp_path / "own.pth"))
    assert status == 0 and document["weights"] == "own.pth"


def test_inference_lists_peers_that_are_absent_or_fail(monkeypatch, tmp_path, capsys):
    def fails(*_):
        raise RuntimeError("no kernel for this")

    peers = (
        peer_table.Peer("absent", "no_such_module_anywhere", "", fails),
        peer_table.Peer("elsewhere", "torch", "", fails, ("cuda",)),
        peer_table.Peer("failing", "torch", "", fails),
    )
    monkeypatch.setattr(inference, "PEERS", peers)
    status, document = run_inference(tmp_path, "--batch", "1", "--peers")
    seen = {row["label"]: row["status"] for row in document["batches"][0]["rows"] if row["kind"] == "peer"}
    assert status == 0
    assert seen == {
        "absent": "not installed",
        "elsewhere": "does not run on cpu",
        "failing": "error: RuntimeError: no kernel for this",
    }
    printed = capsys.readouterr().out
    assert "absent: not installed" in printed and "failing: error: RuntimeError: no kernel for this" in printed


@pytest.mark.parametrize("fault", ["raises", "wrong", "nan"])
def test_inference_fails_when_our_row_does(fault, monkeypatch, tmp_path, capsys):
    prepare = inference.prepare

    def broken(variant, *arguments):
        call = prepare(variant, *arguments)
        if not variant.frozen:
            return call
        if fault == "raises":
            raise RuntimeError("broken")
        return lambda: call() * (1.01 if fault == "wrong" else math.nan)

    monkeypatch.setattr(inference, "prepare", broken)
    status, _ = run_inference(tmp_path, "--batch", "1")
    expected = "error: RuntimeError: broken" if fault == "raises" else "relative RMS error of the logits is"
    assert status == 1
    assert f"FAILED batch 1, fused_resnet frozen: {expected}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "freeze"], "--model freeze: expected one of resnet18, "),
        (["--device", "tpu"], "--device tpu: not a device"),
        (["--device", "cuda:99"], "--device cuda:99: PyTorch sees"),
        (["--batch", "1", "0"], "--batch 0: expected at least 1"),
        (["--threads", "0"], "--threads 0: expected at least 1"),
        (["--size", "8"], "expected --size of at least 32"),
        (["--weights", "no/such.pth"], "no/such.pth"),
    ],
    ids=["model", "device", "no-such-gpu", "batch", "threads", "size", "weights"],
)
def test_inference_refuses_bad_arguments(arguments, message, tmp_path, capsys):
    assert inference.main([*TINY, "--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("peer", peer_table.PEERS, ids=lambda peer: peer.label)
def test_peer_computes_the_network(peer):
    reason = peer.absent_reason(torch.device("cpu"))
    if reason is not None:
        pytest.skip(f"{peer.label}: {reason}")
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = network.eval()(images)
    call = peer.make(network, images, torch.device("cpu"), 1)
    torch.testing.assert_close(call().clone(), expected)
    torch.testing.assert_close(call().clone(), expected)


# ---- layers ----


def test_layers_measures_every_distinct_convolution(tmp_path, capsys):
    target = tmp_path / "layers.json"
    assert layers.main([*TINY, "--batch", "1", "--ceiling-scale", "0.05", "--json", str(target)]) == 0
    document = json.loads(target.read_text())
    assert document["ceilings"]["tflops"] > 0 and document["ceilings"]["tbs"] > 0
    assert sum(entry["count"]["resnet18"] for entry in document["layers"]) == 20
    assert len({entry["layer"] for entry in document["layers"]}) == len(document["layers"]) == 15
    for entry in document["layers"]:
        rows = {row["label"]: row for row in entry["rows"]}
        assert {"eager", "eager channels_last", "reference", "onednn", "frozen"} == set(rows)
        assert all(row["status"] == "ok" and len(row["samples_ms"]) == 2 for row in rows.values())
        assert entry["bound_ms"] > 0
    total = document["totals"]["resnet18"]
    summed = sum(
        e["count"]["resnet18"] * row["median_ms"]
        for e in document["layers"]
        for row in e["rows"]
        if row["label"] == "frozen"
    )
    assert total["frozen"] == pytest.approx(summed)
    assert "64x16x16 -> 64 3x3 s1 +residual +relu" in capsys.readouterr().out


def test_layers_fails_when_ours_differs_from_eager(monkeypatch, capsys):
    first = dict(list(layers.layers_of(["resnet18"], 1, 64).items())[:1])
    monkeypatch.setattr(layers, "layers_of", lambda *_: first)
    monkeypatch.setattr(layers, "our_calls", lambda *_: {"onednn": lambda: torch.zeros(1, 64, 16, 16)})
    assert layers.main([*TINY, "--batch", "1", "--ceiling-scale", "0.05"]) == 1
    assert "onednn: differs from eager by 1.0e+00, limit 1e-05" in capsys.readouterr().err


def test_layers_refuses_bad_arguments(capsys):
    assert layers.main([*TINY, "--batch", "0"]) == 2
    assert "expected --batch" in capsys.readouterr().err
