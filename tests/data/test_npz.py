import pickle

import numpy as np
import pytest
import torch

from helpers.official_layouts import random_images
from robustill.core.errors import DataError
from robustill.data import load

IMAGES = random_images(6, (3, 8, 10))
LABELS = np.array([0, 1, 2, 0, 1, 2])


def write(path, images=IMAGES, labels=LABELS, **names):
    np.savez(path, **{names.get("images", "images"): images, names.get("labels", "labels"): labels})
    return path


@pytest.mark.parametrize(
    "stored",
    [IMAGES, IMAGES.transpose(0, 2, 3, 1), (IMAGES / 255).astype(np.float32), IMAGES / 255],
    ids=["NCHW", "NHWC", "float32", "float64"],
)
def test_every_layout_and_type_gives_the_same_images(tmp_path, stored):
    dataset = load("npz", root=write(tmp_path / "set.npz", stored))
    assert dataset.images.numpy().tobytes() == IMAGES.tobytes()
    assert dataset.labels.tolist() == LABELS.tolist()
    assert dataset.num_classes == 3


def test_grey_images_get_a_channel(tmp_path):
    dataset = load("npz", root=write(tmp_path / "set.npz", IMAGES[:, 0]))
    assert torch.equal(dataset.images, torch.from_numpy(IMAGES[:, :1]))


@pytest.mark.parametrize(("images", "labels"), [("x", "y"), ("image", "label")])
def test_all_documented_array_names_are_read(tmp_path, images, labels):
    assert len(load("npz", root=write(tmp_path / "set.npz", images=IMAGES, labels=LABELS))) == 6
    path = tmp_path / "other.npz"
    np.savez(path, **{images: IMAGES, labels: LABELS[:, None].astype(np.uint8)})
    assert load("npz", root=path).labels.tolist() == LABELS.tolist()


def test_a_folder_has_both_splits(tmp_path):
    write(tmp_path / "train.npz")
    write(tmp_path / "test.npz", IMAGES[:2], LABELS[:2])
    with pytest.warns(UserWarning, match=r"test\.npz: no images of 1 of the 3 classes \(2\)"):
        test = load("npz", root=tmp_path, split="test")
    assert len(test) == 2
    assert test.num_classes == 3


def test_the_test_file_does_not_set_the_class_count(tmp_path):
    write(tmp_path / "train.npz")
    write(tmp_path / "test.npz", labels=np.array([0, 1, 2, 3, 4, 4]))
    assert load("npz", root=tmp_path).num_classes == 3
    with pytest.raises(DataError, match=r"test.npz: found labels up to 4, expected 3 classes"):
        load("npz", root=tmp_path, split="test")
    (tmp_path / "train.npz").unlink()
    assert load("npz", root=tmp_path, split="test").num_classes == 5


def test_a_larger_number_of_classes_can_be_expected(tmp_path):
    assert load("npz", root=write(tmp_path / "set.npz"), num_classes=5).num_classes == 5


def test_images_are_resized_on_request(tmp_path):
    assert load("npz", root=write(tmp_path / "set.npz"), image_size=4).image_shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("images", "labels", "line"),
    [
        (np.full((6, 3, 4, 4), 1.5), LABELS, r"from 1.5 to 1.5, expected floats in \[0,1\]"),
        (np.full((6, 3, 4, 4), -0.1), LABELS, r"expected floats in \[0,1\]"),
        (np.full((6, 3, 4, 4), np.nan), LABELS, "NaN"),
        (np.full((6, 3, 4, 4), np.inf), LABELS, "inf"),
        (IMAGES.astype(np.int32), LABELS, "int32"),
        (IMAGES[:, :2], LABELS, "neither 1 nor 3 channels"),
        (np.zeros((6, 3, 4, 3), np.uint8), LABELS, "either axis"),
        (IMAGES[:, 0, 0], LABELS, "shape"),
        (IMAGES[:0], LABELS[:0], "shape"),
        (IMAGES, LABELS[:4], "4 labels for 6 images"),
        (IMAGES, LABELS - 1, "labels from -1"),
        (IMAGES, LABELS.astype(float), "float64"),
        (IMAGES, np.eye(6, dtype=np.int64), r"expected integers of shape \[N\]"),
        (IMAGES, np.array([2**63] * 6, dtype=np.uint64), "labels from"),
    ],
)
def test_invalid_arrays_are_refused(tmp_path, images, labels, line):
    with pytest.raises(DataError, match=line):
        load("npz", root=write(tmp_path / "set.npz", images, labels))


def test_labels_beyond_the_classes_are_refused(tmp_path):
    path = write(tmp_path / "set.npz", labels=np.array([0, 1, 2, 12, 1, 2]))
    with pytest.raises(DataError, match="found labels up to 12, expected 10 classes"):
        load("npz", root=path, num_classes=10)


def test_missing_arrays_and_files_are_named(tmp_path):
    np.savez(tmp_path / "set.npz", pixels=IMAGES, y=LABELS)
    with pytest.raises(DataError, match=r"images\|x\|image, found pixels, y"):
        load("npz", root=tmp_path / "set.npz")
    with pytest.raises(DataError, match=r"test\.npz; give --data\.root$"):
        load("npz", root=tmp_path, split="test")


def test_damaged_archives_are_refused_with_the_file(tmp_path):
    content = write(tmp_path / "set.npz").read_bytes()
    rng = np.random.default_rng(0)
    damaged = [content[:cut] for cut in range(0, len(content), 97)]
    for place in rng.integers(0, len(content), 60):
        damaged.append(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
    lines = []
    for number, changed in enumerate(damaged):
        path = tmp_path / f"damaged_{number}.npz"
        path.write_bytes(changed)
        try:
            load("npz", root=path)
        except DataError as error:
            lines.append((path.name, str(error)))
    assert len(lines) >= len(content) // 97
    assert all(name in line and "\n" not in line for name, line in lines)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_an_array_of_objects_is_not_unpickled(tmp_path):
    mark = tmp_path / "mark"
    assert b"open" in pickle.dumps(Payload(mark))
    np.savez(tmp_path / "set.npz", images=np.array([Payload(mark)], dtype=object), labels=LABELS)
    with pytest.raises(DataError, match=r"set\.npz"):
        load("npz", root=tmp_path / "set.npz")
    assert not mark.exists()
