"""Images to learn from: scikit-learn's handwritten digits, or a local CIFAR-10 folder or ImageFolder."""

import io
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

CIFAR_TRAIN = tuple(f"data_batch_{index}" for index in range(1, 6))
CIFAR_TEST = "test_batch"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
VALIDATION_NAMES = ("val", "test", "validation")
TEST_DIGITS = 360  # a fifth of the 1,797
SPLIT_SEED = 20


class Tensors(Dataset):
    """Images held in memory: (N, 3, H, W) float32, normalised, with (N,) int64 labels."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


class Folder(Dataset):
    """`root/<class>/<image>` decoded as it is asked for: (3, size, size) float32, the centre square, normalised."""

    def __init__(self, root: Path, classes: list[str], size: int) -> None:
        self.size = size
        self.samples = [
            (path, label)
            for label, name in enumerate(classes)
            for path in sorted((root / name).rglob("*"))
            if path.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not self.samples:
            raise ValueError(f"{root.name}: no images in it; expected {root.name}/<class>/<image>.jpg")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image, ImageOps

        path, label = self.samples[index]
        with Image.open(path) as image:
            square = ImageOps.fit(image.convert("RGB"), (self.size, self.size), Image.Resampling.BILINEAR)
        pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
        pixels = pixels.view(self.size, self.size, 3).permute(2, 0, 1).float().div(255)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        return (pixels - mean) / std, label


@dataclass(frozen=True)
class Data:
    """A training and a test set; augmentation moves an image by up to `shift` pixels and, with `flip`, mirrors it."""

    name: str
    train: Dataset
    test: Dataset
    classes: int
    shift: int
    flip: bool


def digits() -> Data:
    """1,797 handwritten digits of 8 x 8 grey pixels, repeated over three channels; the same 360 are always the test.

    Raises ImportError, saying what to install.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            f"the handwritten digits come with scikit-learn, which cannot be imported ({error}); "
            "install the bench extra: pip install -e '.[bench]', or give --data"
        ) from error
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1).expand(-1, 3, -1, -1)
    labels = torch.tensor(found.target, dtype=torch.int64)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    test, train = order[:TEST_DIGITS], order[TEST_DIGITS:]
    images = (images - images[train].mean()) / images[train].std()
    sets = [Tensors(images[part].contiguous(), labels[part]) for part in (train, test)]
    return Data("digits", *sets, classes=10, shift=1, flip=False)


class _ArraysOnly(pickle.Unpickler):
    """Reads what CIFAR's files hold, containers and NumPy arrays, and nothing that could run."""

    ALLOWED = {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and CIFAR's files hold only NumPy arrays")
        return super().find_class(module, name)


def _cifar_file(path: Path) -> tuple[Tensor, Tensor]:
    """(N, 3, 32, 32) uint8 and (N,) int64 of one of CIFAR-10's files, as its authors distribute them."""
    try:
        content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        images, labels = torch.tensor(content[b"data"]), torch.tensor(content[b"labels"], dtype=torch.int64)
        return images.view(-1, 3, 32, 32), labels
    except (pickle.UnpicklingError, EOFError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path.name}: not one of CIFAR-10's python files ({error})") from error


def cifar10(root: Path) -> Data:
    """CIFAR-10 from the folder of its python version, cifar-10-batches-py; normalised by the training set."""
    missing = [name for name in (*CIFAR_TRAIN, CIFAR_TEST) if not (root / name).is_file()]
    if missing:
        raise ValueError(f"--data {root.name}: a CIFAR-10 folder without {', '.join(missing)}")
    parts = [_cifar_file(root / name) for name in CIFAR_TRAIN]
    train, train_labels = (torch.cat(tensors) for tensors in zip(*parts))
    test, test_labels = _cifar_file(root / CIFAR_TEST)
    train, test = train.float().div(255), test.float().div(255)
    mean, std = train.mean((0, 2, 3)).view(1, 3, 1, 1), train.std((0, 2, 3)).view(1, 3, 1, 1)
    sets = Tensors((train - mean) / std, train_labels), Tensors((test - mean) / std, test_labels)
    return Data("CIFAR-10", *sets, classes=10, shift=4, flip=True)


def image_folder(root: Path, size: int) -> Data:
    """`root/train/<class>/` and `root/val/<class>/` (or test, or validation), resized to `size`."""
    held_out = next((root / name for name in VALIDATION_NAMES if (root / name).is_dir()), None)
    if not (root / "train").is_dir() or held_out is None:
        raise ValueError(
            f"--data {root.name}: expected CIFAR-10's python files ({CIFAR_TRAIN[0]}, ...), or train/<class>/ and "
            "val/<class>/ with images"
        )
    classes = sorted(path.name for path in (root / "train").iterdir() if path.is_dir())
    if len(classes) < 2:
        raise ValueError(f"--data {root.name}: expected at least two classes in train/, found {len(classes)}")
    sets = [Folder(folder, classes, size) for folder in (root / "train", held_out)]
    return Data(root.name, *sets, classes=len(classes), shift=max(1, size // 8), flip=True)


def load(path: str | None, size: int) -> Data:
    """The digits, or what the folder at `path` holds.

    Raises:
        ValueError: no such folder, or neither CIFAR-10 nor an ImageFolder.
        ImportError: the digits without scikit-learn.
    """
    if path is None:
        return digits()
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f"--data {path}: no such folder")
    inner = root / "cifar-10-batches-py"
    root = inner if inner.is_dir() else root
    is_cifar = any((root / name).is_file() for name in (*CIFAR_TRAIN, CIFAR_TEST))
    return cifar10(root) if is_cifar else image_folder(root, size)


def augmented(images: Tensor, shift: int, flip: bool, draw: torch.Generator) -> Tensor:
    """Each image moved by up to `shift` pixels, its border repeated, and, where `flip`, mirrored half of the time.

    Args:
        images: (N, C, H, W) on the CPU.
        draw: decides; the same state gives the same images.
    """
    n, _, height, width = images.shape
    tops, lefts = torch.randint(2 * shift + 1, (2, n), generator=draw)
    mirrored = torch.rand(n, generator=draw) < 0.5 if flip else torch.zeros(n, dtype=torch.bool)
    rows = tops.view(-1, 1) + torch.arange(height)
    columns = lefts.view(-1, 1) + torch.arange(width)
    columns = torch.where(mirrored.view(-1, 1), columns.flip(1), columns)
    padded = functional.pad(images, [shift] * 4, mode="replicate").permute(0, 2, 3, 1)
    index = torch.arange(n).view(-1, 1, 1)
    return padded[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
