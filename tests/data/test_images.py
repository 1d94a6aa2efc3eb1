import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from robustill.core.errors import DataError
from robustill.core.files import reading
from robustill.data import images as images_module
from robustill.data.images import ImageDataset


def make(images=None, labels=None, classes=("a", "b", "c")):
    images = torch.arange(4 * 3 * 2 * 5, dtype=torch.uint8).view(4, 3, 2, 5) if images is None else images
    labels = torch.tensor([0, 1, 2, 1]) if labels is None else labels
    return ImageDataset(name="made up", split="train", images=images, labels=labels, classes=classes)


def test_a_data_set_has_shape_classes_and_images():
    dataset = make()
    assert (len(dataset), dataset.num_classes, dataset.image_shape) == (4, 3, (3, 2, 5))
    assert torch.equal(dataset.read(torch.tensor([2, 0])), dataset.images[[2, 0]])


def test_subset_is_renumbered_in_the_given_order():
    other = make().labels.flip(0)
    assert torch.equal(make().subset(torch.tensor([3, 0]), other).labels, other[[3, 0]])
    part = make().subset(torch.tensor([3, 0]))
    assert torch.equal(part.images, make().images[[3, 0]])
    assert part.labels.tolist() == [1, 0]
    assert part.classes == ("a", "b", "c")


def test_fingerprint_is_the_hash_of_shape_pixels_and_labels():
    dataset = make()
    content = b"(4, 3, 2, 5)" + bytes(range(120)) + np.array([0, 1, 2, 1], dtype="<i8").tobytes()
    assert dataset.fingerprint == hashlib.sha256(content).hexdigest()


def test_fingerprint_changes_with_pixel_label_and_shape():
    images = make().images
    pixel = images.clone()
    pixel[3, 2, 1, 4] += 1
    others = [make(pixel), make(labels=torch.tensor([0, 1, 2, 2])), make(images.view(4, 3, 5, 2))]
    assert len({make().fingerprint, *(other.fingerprint for other in others)}) == 4
    assert make(images.transpose(2, 3).contiguous().transpose(2, 3)).fingerprint == make().fingerprint


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"images": torch.zeros(4, 3, 2, 5)}, "expected uint8"),
        ({"images": torch.zeros(4, 2, 5, dtype=torch.uint8)}, r"\[N,C,H,W\]"),
        ({"images": torch.zeros(4, 3, 0, 5, dtype=torch.uint8)}, "no pixels"),
        ({"labels": torch.tensor([0, 1])}, "2 labels for 4 images"),
        ({"labels": torch.tensor([0.0, 1, 2, 1])}, "expected int64"),
        ({"labels": torch.tensor([0, 1, 12, 1])}, "found labels up to 12, expected 3 classes"),
        ({"labels": torch.tensor([0, -1, 2, 1])}, "found the label -1"),
    ],
)
def test_invalid_tensors_are_refused_in_one_line(change, line):
    with pytest.raises(DataError, match=line) as caught:
        make(**change)
    assert "\n" not in str(caught.value)


def test_resizing_agrees_with_pillow():
    smooth = np.add.outer(np.arange(40), np.arange(60)).astype(np.uint8) * 2
    dataset = make(torch.from_numpy(smooth).expand(1, 1, 40, 60).clone(), torch.tensor([0]))
    pillow = np.array(Image.fromarray(smooth).resize((30, 20), Image.Resampling.BILINEAR))[:, 5:25]
    resized = dataset.resized(20).images[0, 0].numpy()
    assert resized.shape == (20, 20)
    assert np.abs(resized.astype(int) - pillow).max() <= 1


def test_resizing_to_the_same_size_is_the_identity():
    dataset = make(torch.randint(0, 256, (4, 3, 6, 6), dtype=torch.uint8))
    assert dataset.resized(6) is dataset


def test_parser_errors_become_one_line_with_the_file(tmp_path):
    for error in (KeyError("x"), MemoryError(), RuntimeError("first\nsecond"), OverflowError()):
        with pytest.raises(DataError, match="some_file") as caught, reading(tmp_path / "some_file"):
            raise error
        assert "\n" not in str(caught.value)


def test_images_are_resized_a_few_at_a_time(monkeypatch):
    dataset = make(torch.randint(0, 256, (5, 1, 8, 10), dtype=torch.uint8), torch.tensor([0, 1, 2, 1, 0]))
    expected = dataset.resized(12)
    # Two images of 12×15 pixels, before they are cropped.
    monkeypatch.setattr(images_module, "_VALUES_AT_A_TIME", 2 * 12 * 15)
    assert torch.equal(dataset.resized(12).images, expected.images)
    # Not even one.
    assert dataset.resized(40).image_shape == (1, 40, 40)


def test_an_allocation_that_fails_is_one_line(monkeypatch):
    def refuses(*shape, dtype):
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(torch, "empty", refuses)
    with pytest.raises(DataError, match=r"4 images of 3×3 pixels do not fit in memory: give a smaller --data"):
        make().resized(3)
