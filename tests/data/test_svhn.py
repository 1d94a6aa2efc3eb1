import numpy as np
import pytest
from scipy.io import savemat

from helpers.official_layouts import random_images
from robustill.core.errors import DataError
from robustill.data import load

IMAGES = random_images(4, (3, 32, 32))


def write(path, labels=(1, 10, 9, 2), images=IMAGES):
    savemat(path, {"X": images.transpose(2, 3, 1, 0), "y": np.array(labels, dtype=np.uint8)[:, None]})


def test_reads_the_official_layout_and_ten_means_zero(tmp_path):
    write(tmp_path / "train_32x32.mat")
    write(tmp_path / "test_32x32.mat", (3, 3, 3, 3))
    train = load("svhn", root=tmp_path)
    np.testing.assert_array_equal(train.images.numpy(), IMAGES)
    assert train.labels.tolist() == [1, 0, 9, 2]
    assert load("svhn", root=tmp_path, split="test").labels.tolist() == [3] * 4


def test_missing_damaged_and_wrong_files_are_named(tmp_path):
    path = tmp_path / "train_32x32.mat"
    with pytest.raises(DataError, match=r"train_32x32\.mat; give --data\.root$"):
        load("svhn", root=tmp_path)
    write(path)
    content = path.read_bytes()
    for cut in [0, 1, 50, 127, 128, 140, 200, 5000, len(content) - 60]:
        path.write_bytes(content[:cut])
        with pytest.raises(DataError, match="train_32x32"):
            load("svhn", root=tmp_path)
    write(path, labels=(1, 11, 9, 2))
    with pytest.raises(DataError, match="found labels up to 11, expected 10 classes"):
        load("svhn", root=tmp_path)
    write(path, images=IMAGES.astype(float))
    with pytest.raises(DataError, match="no uint8 array X"):
        load("svhn", root=tmp_path)
    savemat(path, {"X": IMAGES.transpose(2, 3, 1, 0)})
    with pytest.raises(DataError, match="no array y of whole numbers"):
        load("svhn", root=tmp_path)


def test_any_change_of_any_byte_gives_images_or_one_line(tmp_path):
    """Among these are files that end the process of a reader which believes them."""
    path = tmp_path / "train_32x32.mat"
    write(path)
    content = path.read_bytes()
    lines = []
    for place in [*range(120, 220), *range(len(content) - 64, len(content))]:
        for byte in (0, 1, 0x0E, 0x7F, 0xFF):
            path.write_bytes(content[:place] + bytes([byte]) + content[place + 1 :])
            try:
                load("svhn", root=tmp_path)
            except DataError as error:
                lines.append(str(error))
    assert len(lines) > 100
    assert all(line.startswith((str(path), "svhn")) and "\n" not in line for line in lines)
