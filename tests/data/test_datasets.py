"""The table of data sets, `load`, and the digits of scikit-learn."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from helpers.official_layouts import write_mnist
from robustill.core.errors import DataError
from robustill.data import DATASETS, load, pixel_warnings


def test_an_unknown_name_suggests_a_similar_one():
    with pytest.raises(DataError, match="did you mean cifar10"):
        load("cifar-10")
    with pytest.raises(DataError, match=r"known: .*digits"):
        load("something else")


def test_an_unexpected_number_of_classes_is_refused(tmp_path):
    with pytest.raises(DataError, match="digits: found 10 classes, expected 100"):
        load("digits", num_classes=100)
    assert load("digits", num_classes=10).num_classes == 10


@pytest.mark.parametrize("image_size", [0, -4, 100_000])
def test_an_invalid_image_size_is_refused(image_size):
    with pytest.raises(DataError, match="of at least 1 and below 4097"):
        load("digits", image_size=image_size)


@pytest.mark.parametrize("split", ["Train", "val", "validation", ""])
def test_an_unknown_split_is_refused(split):
    with pytest.raises(DataError, match=f"split '{split}' is unknown: expected train or test"):
        load("digits", split=split)


def test_any_data_set_can_be_resized():
    assert load("digits", image_size=16).image_shape == (1, 16, 16)


def test_the_default_root_is_the_folder_data(tmp_path, monkeypatch):
    write_mnist(tmp_path / "data/MNIST/raw")
    monkeypatch.chdir(tmp_path)
    assert len(load("mnist")) == 20


def test_the_root_may_be_text_with_a_tilde(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load("mnist", root="~")) == 20


def test_the_rows_of_the_table_are_consistent():
    for name, entry in DATASETS.items():
        assert entry.description, name
        if entry.mean is not None and entry.std is not None:
            assert len(entry.mean) == len(entry.std) == entry.image_shape[0]


def test_mean_and_std_of_the_digits_are_right():
    pixels = load("digits").images.double() / 255
    assert DATASETS["digits"].mean == pytest.approx([pixels.mean().item()], abs=5e-5)
    assert DATASETS["digits"].std == pytest.approx([pixels.std(correction=0).item()], abs=5e-5)


def test_the_import_needs_only_torch_and_numpy():
    heavy = ["scipy", "PIL", "sklearn", "matplotlib", "pydantic", "torchvision"]
    code = f"import sys, robustill.data; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_digits_are_those_of_scikit_learn():
    bunch = load_digits()
    expected = {(np.floor(x.ravel() * 255 / 16 + 0.5).astype(np.uint8).tobytes(), int(y)) for x, y in
                zip(bunch.images, bunch.target, strict=True)}  # fmt: skip
    found = []
    for split, count in (("train", 1297), ("test", 500)):
        part = load("digits", split=split)
        assert (len(part), part.image_shape, part.num_classes) == (count, (1, 8, 8), 10)
        found += [(x.numpy().tobytes(), int(y)) for x, y in zip(part.images, part.labels, strict=True)]
    assert len(found) == 1797
    assert set(found) == expected
    assert load("digits").images.max() == 255


def test_the_split_of_the_digits_never_changes():
    labels = load("digits", split="test").labels
    counts = torch.bincount(labels)
    assert counts.min() >= 48
    assert counts.max() <= 51
    # If this fails, published numbers no longer refer to this split.
    fingerprints = load("digits").fingerprint + load("digits", split="test").fingerprint
    assert hashlib.sha256(fingerprints.encode()).hexdigest()[:16] == "ef7ed32c47e2280a"


PIXELS = {
    "black": (np.zeros((20, 8, 8), np.uint8), "every pixel is 0 of 255, which is black"),
    "white": (np.full((20, 8, 8), 255, np.uint8), "every pixel is 255 of 255, which is white"),
    "zeros and ones": (np.arange(20 * 64, dtype=np.uint8).reshape(20, 8, 8) % 2, "no pixel is above 1 of 255"),
    "divided twice": (np.linspace(0, 1 / 255, 20 * 64).reshape(20, 8, 8), "no pixel is above 1 of 255"),
    "of 0 to 16": (np.arange(20 * 64).reshape(20, 8, 8).astype(np.uint8) % 17, "no pixel is above 16 of 255"),
    "one image": (np.tile(np.arange(64, dtype=np.uint8).reshape(1, 8, 8), (20, 1, 1)), "all images are the same"),
}


@pytest.mark.parametrize("name", PIXELS)
def test_pixels_that_nobody_means_are_said(tmp_path, name):
    images, says = PIXELS[name]
    np.savez(tmp_path / "test.npz", images=images, labels=np.arange(20) % 2)
    with pytest.warns(UserWarning, match=says) as caught:
        load("npz", root=tmp_path, split="test")
    assert len(caught) == 1


class Floats:
    """A data set of somebody's own, whose images are floats in [0,1]."""

    name, split, image_shape = "own", "test", (1, 8, 8)

    def __len__(self):
        return 20

    def read(self, indices):
        return torch.rand(len(indices), 1, 8, 8)


def test_images_that_would_be_divided_by_255_twice_are_refused():
    with pytest.raises(DataError, match=r"own \(test\): its images are torch.float32 \[20, 1, 8, 8\], expected uint8"):
        pixel_warnings(Floats())


def test_one_bright_image_is_enough(tmp_path):
    images = np.zeros((50, 8, 8), np.uint8)
    images[17, 3, 3] = 255
    np.savez(tmp_path / "test.npz", images=images, labels=np.arange(50) % 2)
    load("npz", root=tmp_path, split="test")


def test_resized_images_that_do_not_fit_into_memory_are_refused(monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda _: 1000)
    with pytest.raises(DataError, match=r"digits: 1297 images of 64×64 pixels take .* memory here: give a smaller"):
        load("digits", image_size=64)
