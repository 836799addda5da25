"""Wrong arguments: one clear error that names what was given and what was expected, before anything runs."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import fused_resnet
from fused_resnet import ops
from fused_resnet.ops import dispatch
from tests.support import hang

X = torch.randn(2, 8, 6, 6)
WEIGHT = torch.randn(16, 8, 3, 3)
STEM_WEIGHT = torch.randn(8, 8, 7, 7)


def conv(x=X, weight=WEIGHT, **arguments):
    return lambda: ops.conv_scale_shift_act(x, weight, **arguments)


def stem(x=X, weight=STEM_WEIGHT, **arguments):
    return lambda: ops.conv_bn_relu_maxpool(x, weight, **arguments)


# call, then words that the error must hold: what was given and what was expected
BAD_CALLS = {
    "x in 3-D": (conv(X[0]), ["x", "4-D", "3-D (8, 6, 6)"]),
    "x in 5-D": (conv(X[None]), ["x", "4-D", "5-D"]),
    "x of integers": (conv(X.int()), ["x", "float32", "int32"]),
    "x without channels": (conv(X[:, :0]), ["x", "at least one channel", "(2, 0, 6, 6)"]),
    "x without pixels": (conv(X[:, :, :0]), ["x", "at least one", "(2, 8, 0, 6)"]),
    "weight in 2-D": (conv(weight=WEIGHT[:, :, 0, 0]), ["weight", "4-D", "(16, 8)"]),
    "weight of another dtype": (conv(weight=WEIGHT.half()), ["float32", "weight", "float16"]),
    "x in half precision alone": (conv(X.bfloat16()), ["bfloat16", "weight", "float32"]),
    "weight on another device": (conv(weight=WEIGHT.to("meta")), ["cpu", "weight", "meta"]),
    "too few channels": (conv(X[:, :7]), ["expects x to have 8 channels", "7"]),
    "channels for no groups": (conv(groups=2), ["groups=2", "16 channels", "got 8"]),
    "groups that do not divide": (conv(groups=3), ["groups", "16 filters", "3"]),
    "groups of zero": (conv(groups=0), ["groups", "0"]),
    "smaller than the filter": (conv(X[:, :, :2]), ["2 x 6", "smaller than the 3 x 3 filter", "larger image"]),
    "smaller than the dilated filter": (conv(dilation=(3, 3)), ["6 x 6", "dilation [3, 3]"]),
    "stride of zero": (conv(stride=(0, 1)), ["stride", "at least 1", "[0, 1]"]),
    "negative padding": (conv(padding=(-1, 0)), ["padding", "at least 0", "[-1, 0]"]),
    "scale of another size": (conv(bn_weight=torch.ones(8)), ["bn_weight", "(16,)", "(8,)"]),
    "scale in 2-D": (conv(bn_weight=torch.ones(16, 1)), ["bn_weight", "(16,)", "(16, 1)"]),
    "shift of integers": (conv(bn_bias=torch.ones(16).int()), ["bn_bias", "floating point", "int32"]),
    "half of the statistics": (conv(running_var=torch.ones(16)), ["running_mean is None", "both or neither"]),
    "residual of another size": (conv(residual=torch.ones(2, 16, 5, 5)), ["(2, 16, 4, 4)", "(2, 16, 5, 5)"]),
    "residual of another batch": (conv(residual=torch.ones(1, 16, 4, 4)), ["(2, 16, 4, 4)", "(1, 16, 4, 4)"]),
    "residual with more channels": (conv(residual=torch.ones(2, 17, 4, 4)), ["(2, 16, 4, 4)", "(2, 17, 4, 4)"]),
    "residual of another dtype": (conv(residual=torch.ones(2, 16, 4, 4).half()), ["float32", "residual", "float16"]),
    "residual on another device": (conv(residual=torch.ones(2, 16, 4, 4, device="meta")), ["cpu", "residual", "meta"]),
    "residual stride of zero": (conv(residual_stride=0), ["residual_stride", "at least 1", "0"]),
    "another activation": (conv(act="gelu"), ["act", "relu, identity", "'gelu'"]),
    "stem with too few channels": (stem(X[:, :3]), ["expects x to have 8 channels", "3"]),
    "stem smaller than the filter": (stem(X[:, :, :, :2], padding=(0, 0)), ["6 x 2", "7 x 7", "larger image"]),
    "stem smaller than the window": (stem(pool_kernel=5, pool_padding=0), ["3 x 3", "pooling window of 5"]),
    "stem with too much pool padding": (stem(pool_padding=2), ["pool_padding", "half the kernel", "2"]),
    "pool in 3-D": (lambda: ops.global_avg_pool(X[0]), ["global_avg_pool", "4-D", "3-D"]),
    "pool of integers": (lambda: ops.global_avg_pool(X.long()), ["global_avg_pool", "int64"]),
    "option A with fewer channels": (lambda: ops.option_a_shortcut(X, 7, 1), ["out_channels", "8", "7"]),
    "option A with stride zero": (lambda: ops.option_a_shortcut(X, 8, 0), ["stride", "at least 1", "0"]),
}


@pytest.mark.parametrize("backend", ["auto", "onednn", "reference"])
@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_are_refused(name, backend):
    call, words = BAD_CALLS[name]
    with fused_resnet.use_backend(backend), dispatch.recording() as decisions:
        with pytest.raises(fused_resnet.ArgumentError) as caught:
            call()
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{caught.value} does not say {missing}"
    assert decisions == [], "a backend was chosen for arguments that cannot run"


def test_the_error_is_one_that_torch_users_catch():
    with pytest.raises(RuntimeError):
        conv(X[:, :7])()
    with pytest.raises(ValueError):
        conv(X[:, :7])()


def test_bad_calls_are_refused_on_fake_tensors():
    with pytest.raises(fused_resnet.ArgumentError, match="expects x to have 8 channels, got 7"):
        ops.conv_scale_shift_act(X[:, :7].to("meta"), WEIGHT.to("meta"))


@pytest.mark.parametrize("form", ["call", "context"])
def test_an_unknown_backend_is_refused_and_changes_nothing(form):
    with pytest.raises(ValueError, match=r"unknown backend 'cudnn'.*auto, reference, onednn, triton"):
        if form == "call":
            fused_resnet.use_backend("cudnn")
        else:
            with fused_resnet.use_backend("cudnn"):
                pass
    assert dispatch.current() == "auto"


def test_a_backend_asked_for_by_name_does_not_fall_back():
    with fused_resnet.use_backend("onednn"):
        with pytest.raises(fused_resnet.BackendError, match=r"'onednn' cannot run .*float32, x is float64.*auto"):
            ops.conv_scale_shift_act(X.double(), WEIGHT.double())
    assert ops.conv_scale_shift_act(X.double(), WEIGHT.double()).dtype == torch.float64


def test_use_backend_as_a_call_and_as_a_context():
    fused_resnet.use_backend("reference")
    assert dispatch.current() == "reference"
    with fused_resnet.use_backend("onednn"):
        assert dispatch.choose("global_avg_pool", X)[0] == "onednn"
        with fused_resnet.use_backend("auto"):
            assert dispatch.current() == "auto"
    assert dispatch.current() == "reference"


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    """`code` in a Python of its own that sees no GPU and has no Triton interpreter."""
    import os

    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    variables = inherited | {"CUDA_VISIBLE_DEVICES": ""} | environment
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=variables, timeout=hang.SECONDS
    )


def test_a_gpu_backend_without_a_gpu_is_refused_with_the_reason():
    result = run("import fused_resnet; fused_resnet.use_backend('triton')")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "BackendError: backend 'triton' is not available here:" in last and "GPU" in last


CALL = "import torch, fused_resnet; fused_resnet.ops.global_avg_pool(torch.ones(1, 1, 1, 1)); print('ran')"


def test_the_environment_variable_asks_for_a_backend():
    code = CALL + "; print(fused_resnet.ops.dispatch.current())"
    result = run(code, FUSED_RESNET_BACKEND="reference")
    assert result.stdout.split() == ["ran", "reference"], result.stderr


def test_the_environment_variable_with_an_unknown_name_is_refused():
    result = run(CALL, FUSED_RESNET_BACKEND="cudnn")
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1 and "ran" not in result.stdout
    assert "unknown backend 'cudnn'" in last and "FUSED_RESNET_BACKEND" in last


def test_the_environment_variable_with_a_backend_that_is_not_there_is_refused():
    result = run(CALL, FUSED_RESNET_BACKEND="triton")
    assert result.returncode == 1 and "ran" not in result.stdout
    assert "BackendError: backend 'triton' is not available here:" in result.stderr.strip().splitlines()[-1]
