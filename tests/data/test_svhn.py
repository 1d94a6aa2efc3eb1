"""SVHN's files, and the arrays of MATLAB files."""

import io

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from helpers.official_layouts import random_images
from robustill.core.errors import DataError
from robustill.data import load
from robustill.data.svhn import read_matlab

IMAGES = random_images(4, (3, 32, 32))


def write(path, labels=(1, 10, 9, 2), images=IMAGES):
    savemat(path, {"X": images.transpose(2, 3, 1, 0), "y": np.array(labels, dtype=np.uint8)[:, None]})


def test_the_official_layout_is_read_with_ten_as_zero(tmp_path):
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


def test_any_changed_byte_gives_images_or_one_line(tmp_path):
    """Some of these files crash the process of a reader that trusts them."""
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


ARRAYS = {
    "X": np.random.default_rng(0).integers(0, 256, (4, 5, 3, 7), dtype=np.uint8),
    "y": np.arange(7, dtype=np.uint8)[:, None],
    "one": np.array([[3]], dtype=np.int16),
    "a_longer_name": np.linspace(-1, 1, 12).reshape(3, 4),
    "f": np.ones((2, 3), dtype=np.float32),
    "n": np.array([[-(2**40), 5]], dtype=np.int64),
}


def written(content, **settings):
    file = io.BytesIO()
    savemat(file, content, **settings)
    return file.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
def test_matlab_arrays_equal_those_that_scipy_reads(compressed):
    content = written(ARRAYS, do_compression=compressed)
    expected = {name: array for name, array in loadmat(io.BytesIO(content)).items() if not name.startswith("__")}
    read = read_matlab(content)
    assert read.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype.kind == array.dtype.kind


def test_big_endian_matlab_files_are_read():
    """The file is written by hand: X = [1 258] as 16-bit integers."""
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI"
    flags = b"\0\0\0\x06\0\0\0\x08" + b"\0\0\0\x0b" + bytes(4)
    sizes = b"\0\0\0\x05\0\0\0\x08" + b"\0\0\0\x01\0\0\0\x02"
    name, numbers = b"\0\x01\0\x01X\0\0\0", b"\0\x04\0\x04\0\x01\x01\x02"
    body = flags + sizes + name + numbers
    read = read_matlab(head + b"\0\0\0\x0e" + len(body).to_bytes(4, "big") + body)
    assert read["X"].tolist() == [[1, 258]]


def test_other_matlab_variables_are_left_out():
    content = {"X": ARRAYS["X"], "text": "hello", "cell": np.array([1, "a"], dtype=object), "s": {"a": 1}, "c": 1j}
    assert list(read_matlab(written(content))) == ["X"]


def test_other_matlab_formats_and_sizes_are_refused(monkeypatch):
    content = written({"X": np.zeros((100, 100), dtype=np.uint8)}, do_compression=True)
    for other in (b"", content[:100], b"x" * 500, content[:124] + b"\x00\x02IM" + content[128:]):
        with pytest.raises(DataError, match="not a MATLAB 5 file"):
            read_matlab(other)
    monkeypatch.setattr("robustill.data.svhn.LARGEST_FILE", 9000)
    with pytest.raises(DataError, match="more than 9000 bytes"):
        read_matlab(content)
