"""Whether the compiled kernels can run: on this machine, and on these tensors; and where they have been proven."""

from __future__ import annotations

import functools
import importlib
import re
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

EXTENSION = "fused_resnet._C"
INSTALL = (
    "install again where a CUDA toolkit is: `pip install .` compiles it where it finds nvcc, and a torch that has CUDA"
    " or none yet; `FUSED_RESNET_CUDA_ARCHS=default pip install .` wherever nvcc is, for it needs no torch and no GPU"
)
WHY_NOT = Path(__file__).parents[2] / "_C.txt"  # written by an installation without it
MIN_ARCH = 80
CONV_CHANNELS = (64, 128, 256, 512)  # of conv3x3_halo, to as many
DOUBLED_CHANNELS = CONV_CHANNELS[:-1]  # to twice as many, with stride 2
GRADIENTS = ("conv_dgrad", "conv_wgrad", "conv1x1_backward")
IMAGE_CHANNELS = 3
STEM = ((64, IMAGE_CHANNELS, 7, 7), (2, 2), (3, 3), (1, 1), 1)  # weight, stride, padding, dilation, groups
IMAGE_OPS = ("conv_scale_shift_act", "conv_stats", "conv_bn_relu_maxpool")
BOTTLENECK_CHANNELS = (64, 128)  # inside; four times as many out
FINALIZE = ("bn_finalize", "gram_finalize")  # of vectors
PRODUCTS_FILTERS = 2048  # at most, of conv1x1_products: 256 a block, eight blocks a cluster
MAX_ELEMENTS = 1 << 31
CHUNK = 8  # channels to an access of 16 bytes

# The kernel that each op needs first; what is named here is what the backend has.
OPS = {
    "conv_scale_shift_act": "conv3x3_halo_act",
    "conv_stats": "conv3x3_halo_stats",
    "conv_bn_relu_maxpool": "stem_act",
    "global_avg_pool": "global_avg_pool",
    "bottleneck_inference": "bottleneck_inference",
    "conv1x1_bn_add_act": "conv1x1_act",
    "gram": "conv1x1_gram",
    "gram_finalize": "conv1x1_gram",
    "gram_products": "conv1x1_products",
    "gram_backward_finish": "conv1x1_gram_finish",
    "conv_dgrad": "conv3x3_halo_dgrad",
    "conv_wgrad": "conv3x3_halo_wgrad",
    "conv1x1_backward": "conv1x1_dgrad",
    "channel_stats": "channel_stats",
    "bn_finalize": "bn_finalize",
    "bn_add_act": "bn_add_act",
    "bn_act_backward": "bn_act_backward",
    "bn_backward_apply": "bn_backward_apply",
    "bn_relu_maxpool": "bn_relu_maxpool",
    "bn_relu_maxpool_backward": "bn_relu_maxpool_backward",
}

# The architectures, as in 90 for sm_90, on which an op's parity tests have passed on a device.  `auto` takes an op's
# kernel on these and no others; a line is added with the commit that names the run.
PROVEN_ARCHITECTURES: dict[str, frozenset[int]] = {}


@functools.cache
def extension() -> ModuleType | None:
    """The compiled module, or None where it was not compiled for this Python."""
    try:
        return importlib.import_module(EXTENSION)
    except ImportError:
        return None


@functools.cache
def _import_error() -> str:
    try:
        importlib.import_module(EXTENSION)
    except ModuleNotFoundError:
        why = f" ({WHY_NOT.read_text().strip()})" if WHY_NOT.is_file() else ""
        return f"the package was installed without its compiled extension {EXTENSION}{why}; {INSTALL}"
    except ImportError as error:
        return f"{EXTENSION} cannot be imported ({error}); {INSTALL}"
    return ""


def extension_reason() -> str | None:
    """Why there is no compiled extension, and how to get it; None where there is one."""
    return None if extension() is not None else _import_error()


@functools.cache
def compiled_for(op: str) -> str:
    """The architectures that the kernel of `op` was compiled for, in nvcc's names: "sm_80 sm_90a compute_90"."""
    return extension().kernels().get(OPS[op], "nothing")


@functools.cache
def architecture(device: torch.device) -> int:
    """The compute capability of a CUDA device, 90 for 9.0."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def runs_on(names: str, arch: int) -> bool:
    """Whether code for these architectures ("sm_80 sm_90a compute_90") runs on one of compute capability `arch`.

    Machine code runs on its own and on later minor versions, with an "a" on its own alone, with an "f" on later minor
    versions of its family; PTX on every later one, but with a letter only where the machine code would.
    """
    for kind, number, letter in re.findall(r"(sm|compute)_(\d+)([af]?)", names):
        built = int(number)
        same_major = built // 10 == arch // 10 and built <= arch
        if arch == built or (letter == "f" and same_major):
            return True
        if letter == "" and (same_major or (kind == "compute" and built <= arch)):
            return True
    return False


def unavailable_reason() -> str | None:
    """None where the kernels can run here, else what is missing and how to get it.  Creates no CUDA context."""
    missing = extension_reason()
    if missing is not None:
        return missing
    if not torch.cuda.is_available():
        build = "has no CUDA" if torch.version.cuda is None else f"was built for CUDA {torch.version.cuda}"
        return f"there is no CUDA GPU that torch can use (torch {torch.__version__} {build})"
    best = max(architecture(torch.device("cuda", index)) for index in range(torch.cuda.device_count()))
    if best < MIN_ARCH:
        return f"the kernels need a GPU of compute capability 8.0 or newer, and the best one here is sm_{best}"
    return None


def unproven_reason(op: str, x: Tensor) -> str | None:
    """Why `auto` leaves `op` to other backends; None where its kernel was proven on the architecture of x's device."""
    proven = PROVEN_ARCHITECTURES.get(op)
    if not proven:
        return f"no GPU has run the parity tests of its {op} yet; use_backend('cuda') asks for it by name"
    if x.device.type == "cuda" and architecture(x.device) not in proven:
        ran = ", ".join(f"sm_{arch}" for arch in sorted(proven))
        return f"its {op} passed its parity tests on {ran}, but has not run them on sm_{architecture(x.device)}"
    return None


def proof() -> str:
    """Where the parity tests of the kernels have run, in a sentence for `info`."""
    if not PROVEN_ARCHITECTURES:
        return "none of its kernels has run its parity tests on a GPU, so 'auto' takes none; use_backend('cuda') does"
    proven = (f"{op} on {', '.join(f'sm_{a}' for a in sorted(archs))}" for op, archs in PROVEN_ARCHITECTURES.items())
    return f"'auto' takes what has passed its parity tests on a GPU: {'; '.join(proven)}"


def unsupported_reason(op: str, x: Tensor, weight: Tensor | None = None, **arguments) -> str | None:
    """None where the kernels take this call, else why not."""
    if op not in OPS:
        return f"it has no kernel for {op}: it has those of {', '.join(OPS)}"
    reason = _tensor_reason(op, x)
    if reason is None and op in GRADIENTS:
        reason = _gradient_reason(op, tuple(arguments.pop("weight_size", ()) or weight.shape), **arguments)
    elif reason is None and weight is not None:
        reason = _convolution_reason(op, x, weight, **arguments)
    if reason is not None:
        return reason
    if x.device.type != "cuda":
        return f"its kernels need a CUDA tensor, got one on {x.device}"
    arch, names = architecture(x.device), compiled_for(op)
    if not runs_on(names, arch):
        return (
            f"its {op} was compiled for {names}, and {x.device} is sm_{arch};"
            " name it in FUSED_RESNET_CUDA_ARCHS and install again"
        )
    return None


def _convolution_reason(
    op: str,
    x: Tensor,
    weight: Tensor,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    groups: int = 1,
    projected: bool = False,
) -> str | None:
    """What the kernels do not take of a convolution."""
    if op == "gram_products":
        return _products_reason(weight, stride)
    if op == "bottleneck_inference":
        return _bottleneck_reason(x, weight, tuple(stride), projected)
    if op == "conv_bn_relu_maxpool" or x.shape[1] == IMAGE_CHANNELS:
        return _stem_reason(op, tuple(weight.shape), tuple(stride), tuple(padding), tuple(dilation), groups)
    if weight.shape[2:] == (1, 1):
        return _pointwise_reason(op, weight.shape[0], tuple(stride), tuple(padding), groups)
    return _halo_reason(op, tuple(weight.shape), tuple(stride), tuple(padding), tuple(dilation), groups)


def _gradient_reason(op: str, size: tuple[int, ...], stride=(1, 1), padding=(0, 0)) -> str | None:
    """What the kernels do not take of a convolution's gradients."""
    k, c, r, s = size
    geometry = (tuple(stride), tuple(padding))
    if op == "conv_wgrad" and c == IMAGE_CHANNELS:
        return _stem_reason(op, size, *geometry, (1, 1), 1)
    if (r, s) != (1, 1):
        return _halo_reason(op, size, *geometry, (1, 1), 1)
    if c % CHUNK:
        return f"its {op} takes multiples of {CHUNK} input channels, got {c}"
    return _pointwise_reason(op, k, *geometry, 1)


def _pointwise_reason(op: str, filters: int, stride, padding, groups: int) -> str | None:
    if padding == (0, 0) and groups == 1 and stride in ((1, 1), (2, 2)) and not (filters % CHUNK):
        return None
    return (
        f"its {op} takes 1x1 filters, in multiples of {CHUNK}, with stride 1 or 2, no padding and no groups, got"
        f" {filters} with stride {list(stride)}, padding {list(padding)} and groups={groups}"
    )


def _halo_reason(op: str, size: tuple[int, ...], stride, padding, dilation, groups: int) -> str | None:
    """What conv3x3_halo and its gradients do not take."""
    k, c, r, s = size
    geometry = (padding, dilation, groups)
    if (r, s) != (3, 3) or geometry != ((1, 1), (1, 1), 1) or stride not in ((1, 1), (2, 2)):
        return (
            f"its {op} takes 1x1 filters, and 3x3 ones with stride 1 or 2, padding 1, no dilation and no groups, got"
            f" {r}x{s} with stride {list(stride)}, padding {list(padding)}, dilation {list(dilation)}, groups={groups}"
        )
    if (k == c and c in CONV_CHANNELS) or (k == 2 * c and c in DOUBLED_CHANNELS and stride == (2, 2)):
        return None
    return (
        f"its {op} takes {', '.join(map(str, CONV_CHANNELS))} channels to as many, and with stride 2"
        f" {', '.join(map(str, DOUBLED_CHANNELS))} to twice as many, got {c} to {k} with stride {list(stride)}"
    )


def _stem_reason(op: str, size: tuple[int, ...], stride, padding, dilation, groups: int) -> str | None:
    """What the kernels of images do not take."""
    if (size, stride, padding, dilation, groups) == STEM:
        return None
    k, c, r, s = size
    return (
        f"its {op} of images takes 3 channels and 64 filters of 7x7 with stride 2, padding 3, no dilation and no"
        f" groups, got {c} channels and {k} of {r}x{s} with stride {list(stride)}, padding {list(padding)}, dilation"
        f" {list(dilation)}, groups={groups}"
    )


def _products_reason(weight: Tensor, stride: int) -> str | None:
    filters, channels = weight.shape
    if filters > PRODUCTS_FILTERS or channels % CHUNK or stride not in (1, 2):
        return (
            f"its gram_products takes at most {PRODUCTS_FILTERS} filters of a multiple of {CHUNK} channels and stride 1"
            f" or 2, got {filters} of {channels} with stride {stride}"
        )
    return None


def _bottleneck_reason(x: Tensor, weight: Tensor, stride: tuple[int, int], projected: bool) -> str | None:
    channels, c_in = weight.shape[0], x.shape[1]
    if channels not in BOTTLENECK_CHANNELS or stride not in ((1, 1), (2, 2)):
        return (
            f"its bottleneck_inference takes {' and '.join(map(str, BOTTLENECK_CHANNELS))} inner channels and stride 1"
            f" or 2, got {channels} with stride {list(stride)}"
        )
    if projected and (c_in % 64 or c_in > 256):
        return f"its bottleneck_inference projects 64, 128, 192 or 256 channels, got {c_in}"
    return None


def _tensor_reason(op: str, x: Tensor) -> str | None:
    """What the kernel does not take of x: a map, or partials."""
    if op in FINALIZE:
        dtypes, channels = (torch.float32,), x.shape[-1]
    else:
        dtypes, channels = (torch.float16, torch.bfloat16), x.shape[1]
    if x.dtype not in dtypes:
        taken = " and ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        return f"its {op} takes {taken}, got {str(x.dtype).removeprefix('torch.')}"
    of_images = op in IMAGE_OPS and channels == IMAGE_CHANNELS  # read element by element
    if channels % CHUNK and not of_images:
        return f"its kernels take multiples of {CHUNK} channels, got {channels} in {tuple(x.shape)}"
    if x.numel() >= MAX_ELEMENTS:
        return f"its kernels' offsets are 32-bit, and {tuple(x.shape)} has 2^31 elements or more; split the batch"
    # in another layout it is copied, to where torch's allocations begin
    as_it_is = x.is_contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.is_contiguous()
    if as_it_is and x.data_ptr() % 16 and not of_images:
        return f"its kernels read 16 bytes at a time, and the tensor of {tuple(x.shape)} begins in between; clone it"
    return None
