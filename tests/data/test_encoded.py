import io
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.official_layouts import random_images
from helpers.shards import encoded, encoded_images
from robustill.core.errors import DataError
from robustill.data import ImageDataset
from robustill.data.encoded import StreamingDataset, data_set_of, decode
from robustill.data.images import Request


@dataclass
class Store:
    """Encoded images in memory, which remembers what was asked for."""

    images: list[bytes]

    def __post_init__(self):
        self.fetched, self.threads = [], set()

    def __len__(self):
        return len(self.images)

    def path(self, number):
        return Path(f"store/{number}")

    def identity(self):
        yield from self.images

    def fetch(self, numbers, pool):
        self.fetched.append(list(numbers))
        return list(pool.map(self._open, numbers))

    def _open(self, number):
        self.threads.add(threading.current_thread().name)
        return io.BytesIO(self.images[number])

    def subset(self, numbers):
        return Store([self.images[number] for number in numbers.tolist()])


def made(images, *, labels=None, image_size=None, split_rule=None):
    request = Request(name="store", root=Path("store"), split="train", image_size=image_size)
    labels = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
    return data_set_of(request, Store(images), labels, ("a", "b"), split_rule)


def test_images_are_in_memory_as_long_as_they_fit(monkeypatch):
    images = encoded_images(3)
    expected = torch.from_numpy(random_images(3, (4, 5, 3))).permute(0, 3, 1, 2)
    monkeypatch.setattr("robustill.data.encoded.MEMORY_BOUND", expected.numel())
    memory = made(images, split_rule="a rule")
    assert isinstance(memory, ImageDataset)
    assert torch.equal(memory.images, expected)
    monkeypatch.setattr("robustill.data.encoded.MEMORY_BOUND", expected.numel() - 1)
    streaming = made(images, split_rule="a rule")
    assert isinstance(streaming, StreamingDataset)
    assert torch.equal(streaming.read(torch.tensor([2, 0])), expected[[2, 0]])
    assert memory.split_rule == streaming.split_rule == "a rule"
    assert (streaming.image_shape, streaming.num_classes, len(streaming)) == ((3, 4, 5), 2, 3)
    monkeypatch.setattr("robustill.data.encoded.MEMORY_BOUND", 0)
    assert made(images, image_size=2).encoded.fetched == []


def test_a_batch_is_read_by_eight_threads_at_most(monkeypatch):
    monkeypatch.setattr("robustill.data.encoded.MEMORY_BOUND", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    streaming = made(encoded_images(100))
    streaming.read(torch.arange(100))
    assert streaming.encoded.fetched[-1] == list(range(100))
    assert 1 <= len(streaming.encoded.threads) <= 16
    assert streaming._pool._max_workers == 8


def test_what_is_wrong_is_named(monkeypatch):
    images = encoded_images(3)
    with pytest.raises(DataError, match=r"store \(train\): no images"):
        made([])
    with pytest.raises(DataError, match=r"store \(train\): found labels up to 2, expected 2 classes"):
        made(images, labels=torch.tensor([0, 1, 2]))
    with pytest.raises(DataError, match="store/1: damaged or not of the expected format"):
        made([images[0], images[1][:40], images[2]])
    with pytest.raises(DataError, match=r"store/2: 6×5 pixels while store/0 has 4×5; give --data\.image_size"):
        made([*images[:2], encoded(random_images(1, (6, 5, 3))[0])])
    with pytest.raises(DataError, match="store/0: pixels of mode I;16, expected 8 bits a channel"):
        made([encoded(np.full((4, 5), 40000, np.uint16)), *images])
    monkeypatch.setattr("robustill.data.encoded.MEMORY_BOUND", 0)
    streaming = made(images)
    streaming.encoded.images[1] = encoded(random_images(1, (6, 5, 3))[0])
    with pytest.raises(DataError, match="store/1: 6×5 pixels, expected 4×5"):
        streaming.read(torch.arange(3))


def test_a_file_is_decoded_as_its_content_is(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded_images(1)[0])
    assert torch.equal(decode(tmp_path / "a.png"), decode(io.BytesIO(encoded_images(1)[0])))
    (tmp_path / "a.png").write_bytes(b"none")
    with pytest.raises(DataError, match=r"a\.png: damaged"):
        decode(tmp_path / "a.png")
    with pytest.raises(DataError, match="here: damaged"):
        decode(io.BytesIO(b"none"), Path("here"))


def test_images_are_resized_and_cropped_like_pillow(tmp_path):
    pixels = random_images(1, (40, 31, 3))[0]
    resized = Image.fromarray(pixels).resize((8, round(40 * 8 / 31)), Image.Resampling.BILINEAR).crop((0, 1, 8, 9))
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    assert torch.equal(decode(io.BytesIO(encoded(pixels)), image_size=8), expected)
    assert torch.equal(made([encoded(pixels), *encoded_images(1)], image_size=8).images[0], expected)


def oriented(pixels, orientation):
    """The pixels as a camera stores them that writes this EXIF orientation."""
    stored = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: pixels.swapaxes(0, 1)[::-1],
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: pixels.swapaxes(0, 1)[:, ::-1],
    }
    return np.ascontiguousarray(stored[orientation])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "webp"])
def test_the_orientation_of_a_camera_is_applied(tmp_path, orientation, kind):
    pixels = random_images(1, (10, 12, 3), 7)[0]
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"0.{kind}"
    Image.fromarray(oriented(pixels, orientation)).save(file, exif=exif, lossless=True)
    assert torch.equal(decode(file), torch.from_numpy(pixels).permute(2, 0, 1))
    # The size in the header is that of the upright image, so that both need no image size.
    assert made([file.read_bytes(), encoded(pixels)]).image_shape == (3, 10, 12)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\xff" * 50])
def test_damaged_exif_data_changes_nothing(tmp_path, exif):
    pixels = random_images(1, (10, 12, 3), 7)[0]
    Image.fromarray(pixels).save(tmp_path / "0.jpg", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "plain.jpg")
    assert torch.equal(decode(tmp_path / "0.jpg"), decode(tmp_path / "plain.jpg"))
