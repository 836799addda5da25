"""What the benchmarks train on: CIFAR-10, folders of images, the digits; read, split, refused and augmented."""

import pickle
from pathlib import Path

import numpy
import pytest
import torch

from benchmarks.learning import data


def write_cifar(folder: Path, images: int = 4) -> Path:
    folder.mkdir()
    draw = numpy.random.default_rng(0)
    for name in (*data.CIFAR_TRAIN, data.CIFAR_TEST):
        content = {
            b"data": draw.integers(0, 256, (images, 3072), dtype=numpy.uint8),
            b"labels": [index % 10 for index in range(images)],
        }
        (folder / name).write_bytes(pickle.dumps(content))
    return folder


def test_cifar_folder(tmp_path):
    folder = write_cifar(tmp_path / "cifar-10-batches-py")
    for given in (folder, tmp_path):
        found = data.load(str(given), 32)
        assert (found.name, len(found.train), len(found.test), found.classes) == ("CIFAR-10", 20, 4, 10)
    assert found.train.images.shape == (20, 3, 32, 32)
    assert found.train.images.mean().abs() < 1e-5 and found.train[5][1] == 1
    (folder / "test_batch").unlink()
    with pytest.raises(ValueError, match="a CIFAR-10 folder without test_batch"):
        data.load(str(folder), 32)


def test_a_pickle_that_would_run_something_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "run",))

    folder = write_cifar(tmp_path / "cifar")
    (folder / "data_batch_3").write_bytes(pickle.dumps({b"data": Harmful()}))
    with pytest.raises(ValueError, match="data_batch_3: not one of CIFAR-10's python files .it asks for pathlib"):
        data.load(str(folder), 32)
    assert not (tmp_path / "run").exists()


def write_image_folder(root: Path) -> Path:
    from PIL import Image

    for part in ("train", "val"):
        for label, shade in (("black", 0), ("white", 255)):
            (root / part / label).mkdir(parents=True)
            for index in range(4):
                Image.new("RGB", (20, 12 + index), (shade,) * 3).save(root / part / label / f"{index}.png")
    return root


def test_image_folder(tmp_path):
    found = data.load(str(write_image_folder(tmp_path / "shades")), 16)
    assert (found.name, len(found.train), len(found.test), found.classes) == ("shades", 8, 8, 2)
    (black, first), (white, last) = found.train[0], found.train[7]
    assert black.shape == (3, 16, 16) and (first, last) == (0, 1)
    assert (white - black).mean((1, 2)).tolist() == pytest.approx([1 / 0.229, 1 / 0.224, 1 / 0.225], rel=1e-4)
    with pytest.raises(ValueError, match="expected CIFAR-10's python files"):
        data.load(str(tmp_path), 16)
    with pytest.raises(ValueError, match="no such folder"):
        data.load(str(tmp_path / "nowhere"), 16)


def test_digits_are_split_once_and_for_all():
    found = data.digits()
    assert (len(found.train), len(found.test)) == (1437, 360)
    assert abs(found.train.images.mean()) < 1e-4 and found.train.images.std() == pytest.approx(1, abs=1e-3)
    assert torch.equal(found.test.images, data.digits().test.images)
    assert found.test.labels.bincount().min() > 20


def test_augmentation_moves_and_mirrors():
    images = torch.arange(50.0).view(2, 1, 5, 5)
    draw = torch.Generator().manual_seed(0)
    assert torch.equal(data.augmented(images, 0, False, draw), images)
    moved = torch.stack([data.augmented(images, 1, True, draw) for _ in range(200)])
    centres = {(value.item() - 12) for value in moved[:, 0, 0, 2, 2]}
    assert centres == {row * 5 + column for row in (-1, 0, 1) for column in (-1, 0, 1)}
    steps = {value.item() for value in (moved[:, 0, 0, 2, 3] - moved[:, 0, 0, 2, 2])}
    assert steps == {1, -1}
