"""Each change against the same change of an image by Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from robustill.data.augmentation import Augmentation, cropshift, erase
from robustill.data.randaugment import CHANGES, COLOURS, SHAPES, change, randaugment


def pictures(count=6, size=(12, 16)):
    """Return smooth colour images, similar to photographs."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic", align_corners=False)
    return (smooth.clamp(0, 1) * 230 + 10).to(torch.uint8)


def by_pillow(picture, name, amount):
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    W, H = image.size
    factor = 1 + 0.9 * amount
    middle_x, middle_y = W / 2, H / 2

    def affine(a, b, c, d, e, f):
        """Transform so that output (x, y) is the input at (a·x + b·y + c, d·x + e·y + f), relative to the centre."""
        matrix = (a, b, c + middle_x - a * middle_x - b * middle_y, d, e, f + middle_y - d * middle_x - e * middle_y)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)

    angle = np.deg2rad(30 * amount)
    return {
        "identity": lambda: image,
        "rotate": lambda: affine(np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0),
        # In shares of the half sides: x' = x + s·y where both run from -1 to 1.
        "shear_x": lambda: affine(1, 0.3 * amount * W / H, 0, 0, 1, 0),
        "shear_y": lambda: affine(1, 0, 0, 0.3 * amount * H / W, 1, 0),
        "translate_x": lambda: affine(1, 0, 0.3 * amount * W, 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, 0.3 * amount * H),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "colour": lambda: ImageEnhance.Color(image).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "posterize": lambda: ImageOps.posterize(image, 8 - round(4 * abs(amount))),
        "solarize": lambda: ImageOps.solarize(image, 256 * (1 - abs(amount))),
    }[name]()


@pytest.mark.parametrize("amount", [-0.9, -0.25, 0.25, 0.9])
@pytest.mark.parametrize("name", CHANGES)
def test_each_change_equals_that_of_pillow(name, amount):
    images = pictures()
    B = len(images)
    changed = change(images, torch.full((B,), CHANGES.index(name)), torch.full((B,), amount))
    for picture, after in zip(images, changed, strict=True):
        expected = np.asarray(by_pillow(picture, name, amount)).transpose(2, 0, 1).astype(int)
        difference = np.abs(after.numpy().astype(int) - expected)
        if name in SHAPES:
            # At the edge of the picture Pillow cuts where we fade to black.
            inside = (expected > 0).all(axis=0)
            inside[1:-1, 1:-1] &= inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
            inside[[0, -1]] = inside[:, [0, -1]] = False
            assert inside.sum() > 20
            difference = difference[:, inside]
        assert difference.max() <= 2
    if name == "identity":
        assert torch.equal(changed, images)
    else:
        assert not torch.equal(changed, images)


def test_each_image_has_its_own_change_and_amount():
    images = pictures(len(CHANGES))
    amounts = torch.linspace(-1, 1, len(CHANGES))
    together = change(images, torch.arange(len(CHANGES)), amounts)
    for number in range(len(CHANGES)):
        own = slice(number, number + 1)
        assert torch.equal(change(images[own], torch.tensor([number]), amounts[own]), together[own])


def test_changes_and_signs_are_drawn_uniformly():
    seen = []

    def draw(high):
        numbers = torch.randint(high, (6500,), generator=generator)
        seen.append((high, numbers))
        return numbers

    generator = torch.Generator().manual_seed(0)
    randaugment(torch.zeros(6500, 1, 2, 2, dtype=torch.uint8), draw, count=2)
    assert [high for high, _ in seen] == [len(CHANGES), 2, len(CHANGES), 2]
    assert (torch.bincount(seen[0][1]) - 500).abs().max() < 110
    assert len(CHANGES) == 1 + len(SHAPES) + len(COLOURS) == 13


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_any_number_of_channels_is_possible(channels):
    images = torch.randint(0, 256, (40, channels, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    changed = Augmentation([("randaugment", {"strength": 1.0})])(images, torch.Generator().manual_seed(0))
    assert changed.dtype == torch.uint8
    assert changed.shape == images.shape
    assert not torch.equal(changed, images)
    none = Augmentation([("randaugment", {"count": 0})])(images, torch.Generator().manual_seed(0))
    assert torch.equal(none, images)


def test_idbh_applies_its_parts_in_order():
    images = pictures(30)
    whole = Augmentation([("idbh", {"most": 4, "strength": 0.7})])(images, torch.Generator().manual_seed(3))
    numbers = torch.Generator().manual_seed(3)

    def draw(high):
        return torch.randint(high, (30,), generator=numbers)

    mirrored = draw(2).bool().view(-1, 1, 1, 1)
    by_hand = torch.where(mirrored, images.flip(3), images)
    by_hand = cropshift(by_hand, draw, most=4)
    by_hand = randaugment(by_hand, draw, count=1, strength=0.7)
    assert torch.equal(whole, erase(by_hand, draw))
