"""What every test runs under: settings that must stand before torch or triton is imported come first."""

import os
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Asks NVML instead of the driver, so that a test may still fork.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
# The choice of the person at the keyboard is not what the tests are about.
os.environ.pop("FUSED_RESNET_BACKEND", None)

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import hypothesis
import pytest

import fused_resnet
from fused_resnet.ops import dispatch

# What hypothesis measures says how loaded the machine is.
UNTIMED = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("local", **UNTIMED)
hypothesis.settings.register_profile("ci", **UNTIMED, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True)
def defaults(monkeypatch):
    """Each test starts from the default backend and a fixed seed, and leaves torch's switches as it found them."""
    torch.manual_seed(0)
    # The maps that CI can afford are small: without this, `auto` would leave nearly all of them to torch's modules.
    monkeypatch.setattr(dispatch, "SMALL_MAP", 0)
    backend, grad, dtype = dispatch.current(), torch.is_grad_enabled(), torch.get_default_dtype()
    # float32 means float32: torch's default on a GPU is tf32 for convolutions
    tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = tf32
    fused_resnet.use_backend(backend)
    torch.set_grad_enabled(grad)
    torch.set_default_dtype(dtype)


@pytest.fixture
def threads():
    """Two threads; `thread(function, *arguments)` runs the call there and gives its result."""
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        yield [lambda *call, pool=pool: pool.submit(*call).result() for pool in (first, second)]


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, torch sees none")
