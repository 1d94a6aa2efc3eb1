"""Small made-up data sets in the layouts of the official files."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np


def random_images(count: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def python2_pickle(content: dict[str, object]) -> bytes:
    """Return a pickle as Python 2's cPickle wrote it, with byte strings and an array whose state contains one."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value

    def dump(value: object) -> bytes:
        if isinstance(value, str):
            return text(value.encode())
        if isinstance(value, int):
            return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)
        if isinstance(value, list):
            return b"](" + b"".join(map(dump, value)) + b"e"
        assert isinstance(value, np.ndarray)
        empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87Rq\x01"
        dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        shape = b"".join(map(dump, value.shape)) + b"\x86"
        return empty + b"(K\x01" + shape + dtype + b"\x89" + text(value.tobytes()) + b"tb"

    return b"\x80\x02}(" + b"".join(dump(key) + dump(value) for key, value in content.items()) + b"u."


def write_cifar10(root: Path, *, per_batch: int = 6, protocol: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Write cifar-10-batches-py; return the training images [N,3,32,32] and labels."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images, labels = [], []
    for seed, name in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]):
        pixels = random_images(per_batch, (3072,), seed)
        batch_labels = [(seed + row) % 10 for row in range(per_batch)]
        content = {"batch_label": name, "labels": batch_labels, "data": pixels, "filenames": ["a.png"] * per_batch}
        (folder / name).write_bytes(pickle.dumps(content, protocol=protocol))
        images.append(pixels.reshape(-1, 3, 32, 32))
        labels.append(np.array(batch_labels))
    return np.concatenate(images[:-1]), np.concatenate(labels[:-1])


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder: Path, *, count: int = 20, gzipped: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Write the four idx files; return the training images [N,28,28] and labels."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, stem in ((1, "t10k"), (0, "train")):
        images = random_images(count, (28, 28), seed)
        labels = ((np.arange(count) + seed) % 10).astype(np.uint8)
        for name, array in ((f"{stem}-images-idx3-ubyte", images), (f"{stem}-labels-idx1-ubyte", labels)):
            content = idx_bytes(array)
            if gzipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
    return images, labels
