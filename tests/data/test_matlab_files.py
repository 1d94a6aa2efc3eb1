import io

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from robustill.core.errors import DataError
from robustill.data.svhn import read_matlab

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
def test_agrees_with_scipy(compressed):
    content = written(ARRAYS, do_compression=compressed)
    expected = {name: array for name, array in loadmat(io.BytesIO(content)).items() if not name.startswith("__")}
    read = read_matlab(content)
    assert read.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype.kind == array.dtype.kind


def test_big_endian():
    """Written by hand: X = [1 258] as 16-bit integers."""
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI"
    flags = b"\0\0\0\x06\0\0\0\x08" + b"\0\0\0\x0b" + bytes(4)
    sizes = b"\0\0\0\x05\0\0\0\x08" + b"\0\0\0\x01\0\0\0\x02"
    name, numbers = b"\0\x01\0\x01X\0\0\0", b"\0\x04\0\x04\0\x01\x01\x02"
    body = flags + sizes + name + numbers
    read = read_matlab(head + b"\0\0\0\x0e" + len(body).to_bytes(4, "big") + body)
    assert read["X"].tolist() == [[1, 258]]


def test_other_variables_are_left_out():
    content = {"X": ARRAYS["X"], "text": "hello", "cell": np.array([1, "a"], dtype=object), "s": {"a": 1}, "c": 1j}
    assert list(read_matlab(written(content))) == ["X"]


def test_other_formats_and_large_variables_are_refused(monkeypatch):
    content = written({"X": np.zeros((100, 100), dtype=np.uint8)}, do_compression=True)
    for other in (b"", content[:100], b"x" * 500, content[:124] + b"\x00\x02IM" + content[128:]):
        with pytest.raises(DataError, match="not a MATLAB 5 file"):
            read_matlab(other)
    monkeypatch.setattr("robustill.data.svhn.LARGEST_FILE", 9000)
    with pytest.raises(DataError, match="more than 9000 bytes"):
        read_matlab(content)
