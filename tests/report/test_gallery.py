import base64
import io

import numpy as np
import pytest
from PIL import Image

from helpers.made_up_runs import CIFAR_CLASSES, make_records
from robustill.report.gallery import make_gallery, png_uri


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_holds_the_image(channels):
    image = np.random.default_rng(0).random((channels, 5, 7)).astype(np.float32)
    expected = (image * 255).round().astype(np.uint8).transpose(1, 2, 0)
    np.testing.assert_array_equal(pixels(png_uri(image)), expected.squeeze(2) if channels == 1 else expected)


def test_a_large_image_is_scaled_down():
    assert pixels(png_uri(np.zeros((3, 300, 600), np.float32))).shape == (80, 160, 3)


def test_a_dozen_pictures_with_their_predictions():
    records = make_records(strength=0, seed=0, channels=3, eps=8 / 255, classes=CIFAR_CLASSES)
    gallery = make_gallery(records)
    assert len(gallery.pictures) == 12
    rows = [picture.index - 1000 for picture in gallery.pictures]
    assert rows == sorted(set(rows))
    # Every class has a picture before any class has a second one.
    assert {records.label[row] for row in rows} == set(records.label[:16].tolist())
    for row, picture in zip(rows, gallery.pictures, strict=True):
        label = CIFAR_CLASSES[records.label[row]]
        assert (picture.index, picture.label, picture.size) == (1000 + row, label, (32, 32))
        assert picture.clean_caption.startswith(CIFAR_CLASSES[records.clean_probabilities[row].argmax()])
        is_robust = {"robust": True, "fooled": False, "wrong without attack": False}[picture.outcome]
        assert is_robust == records.robust[row]


def test_the_change_is_amplified_by_the_printed_factor():
    records = make_records(strength=0, seed=0, classes=tuple("0123456789"))
    gallery = make_gallery(records)
    change = records.example_adversarial[0, 0] - records.example_clean[0, 0]
    expected = (np.clip(0.5 + gallery.factor * change, 0, 1) * 255).round()
    np.testing.assert_allclose(pixels(gallery.pictures[0].perturbation), expected, atol=1)
    assert gallery.factor * np.abs(records.example_adversarial - records.example_clean).max() <= 0.5


def test_without_example_images_there_is_no_gallery():
    records = make_records(strength=0, seed=0, classes=tuple("0123456789"))
    values = {name: getattr(records, name) for name in records.__dataclass_fields__}
    without = dict.fromkeys(("example_index", "example_clean", "example_adversarial"))
    assert make_gallery(type(records)(**{**values, **without})) is None
