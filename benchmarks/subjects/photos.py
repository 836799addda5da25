"""Photographs in place of noise: scikit-learn's two sample images, prepared as ImageNet evaluation prepares its images.

Random pixels would do for timing, but the error of a network is only worth stating on the inputs it is made for.
"""

import torch
from torch import Tensor
from torch.nn import functional

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def photographs() -> dict[str, Tensor]:
    """scikit-learn's sample images by file name: (3, H, W) uint8.  Raises ImportError, saying what to install."""
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise ImportError(
            f"the benchmark's photographs come with scikit-learn, which cannot be imported ({error}); "
            "install the bench extra: pip install -e '.[bench]'"
        ) from error
    sample = load_sample_images()
    names = [name.replace("\\", "/").rsplit("/", 1)[-1] for name in sample.filenames]
    return {
        name: torch.tensor(image).permute(2, 0, 1).contiguous()
        for name, image in zip(names, sample.images, strict=True)
    }


def resized(photo: Tensor, size: int) -> Tensor:
    """(3, H, W) uint8 -> float32 in [0, 1], the shorter side 256/224 of `size`, antialiased bilinear."""
    shorter = round(size * 256 / 224)
    _, height, width = photo.shape
    scale = shorter / min(height, width)
    target = (max(shorter, round(height * scale)), max(shorter, round(width * scale)))
    image = photo.float().div(255).unsqueeze(0)
    return functional.interpolate(image, size=target, mode="bilinear", antialias=True, align_corners=False)[0].clamp(
        0, 1
    )


def centre(image: Tensor, size: int) -> Tensor:
    """The `size` x `size` square in the middle of (3, H, W)."""
    top, left = ((side - size) // 2 for side in image.shape[-2:])
    return image[:, top : top + size, left : left + size]


def batch_of_photographs(batch: int, size: int = 224, seed: int = 0) -> Tensor:
    """(batch, 3, size, size) float32, contiguous, normalised with ImageNet's mean and deviation.

    The first images are the centre crops of the photographs; the others cycle through the photographs with a random
    crop and a random horizontal flip, drawn from `seed`.
    """
    if batch < 1 or size < 32:
        raise ValueError(f"expected a batch of at least 1 and a size of at least 32, got batch {batch} and size {size}")
    sources = [resized(photo, size) for photo in photographs().values()]
    draw = torch.Generator().manual_seed(seed)
    images = [centre(source, size) for source in sources[:batch]]
    while len(images) < batch:
        source = sources[len(images) % len(sources)]
        top, left = (int(torch.randint(side - size + 1, (1,), generator=draw)) for side in source.shape[-2:])
        crop = source[:, top : top + size, left : left + size]
        images.append(crop.flip(-1) if torch.rand(1, generator=draw) < 0.5 else crop)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return ((torch.stack(images) - mean) / std).contiguous()
