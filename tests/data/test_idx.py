import gzip

import numpy as np
import pytest

from helpers.official_layouts import idx_bytes, write_mnist
from robustill.core.errors import DataError
from robustill.data import load


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize(
    ("name", "folder"),
    [("mnist", "MNIST/raw"), ("mnist", "."), ("fashion_mnist", "FashionMNIST/raw"), ("fashion_mnist", ".")],
)
def test_every_layout_is_read(tmp_path, name, folder, gzipped):
    images, labels = write_mnist(tmp_path / folder, gzipped=gzipped)
    train, test = load(name, root=tmp_path), load(name, root=tmp_path, split="test")
    np.testing.assert_array_equal(train.images[:, 0].numpy(), images)
    np.testing.assert_array_equal(train.labels.numpy(), labels)
    assert train.image_shape == (1, 28, 28)
    assert train.classes[0] == ("0" if name == "mnist" else "T-shirt/top")
    assert train.fingerprint != test.fingerprint


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"MNIST/raw/train-images-idx3-ubyte or .*train-images-idx3-ubyte; give"):
        load("mnist", root=tmp_path)


@pytest.mark.parametrize("gzipped", [False, True])
def test_a_truncated_or_changed_file_is_named(tmp_path, gzipped):
    write_mnist(tmp_path, count=3, gzipped=gzipped)
    path = tmp_path / ("train-images-idx3-ubyte" + ".gz" * gzipped)
    content = path.read_bytes()
    for cut in [*range(0, 20), *range(20, len(content), 101), len(content) - 1]:
        path.write_bytes(content[:cut])
        with pytest.raises(DataError, match="train-images-idx3-ubyte"):
            load("mnist", root=tmp_path)
    plain = gzip.decompress(content) if gzipped else content
    for changed in (plain + b"x", b"\0\0\x0d\3" + plain[4:], plain[:4] + b"\xff" * 12 + plain[16:]):
        path.write_bytes(gzip.compress(changed) if gzipped else changed)
        with pytest.raises(DataError, match="train-images-idx3-ubyte"):
            load("mnist", root=tmp_path)


def test_inconsistent_files_are_refused(tmp_path):
    write_mnist(tmp_path, count=3)
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(idx_bytes(np.array([0, 12, 1], dtype=np.uint8)))
    with pytest.raises(DataError, match="found labels up to 12, expected 10 classes"):
        load("mnist", root=tmp_path)
    path.write_bytes(idx_bytes(np.array([0, 1], dtype=np.uint8)))
    with pytest.raises(DataError, match="2 labels for 3 images"):
        load("mnist", root=tmp_path)
    path.write_bytes(idx_bytes(np.array([0, 1, 2], dtype=np.uint8)))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((3, 14, 14), dtype=np.uint8)))
    with pytest.raises(DataError, match=r"images of shape \(1, 14, 14\), expected \(1, 28, 28\)"):
        load("mnist", root=tmp_path)


def test_a_header_with_a_huge_size_is_refused(tmp_path):
    write_mnist(tmp_path, gzipped=True)
    bomb = b"\0\0\x08\3" + b"\0\xff\xff\xff" * 3 + bytes(1000)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bomb))
    with pytest.raises(DataError, match="the header claims"):
        load("mnist", root=tmp_path)
