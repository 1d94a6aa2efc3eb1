"""Augmentations one by one, lists of them, and mixed labels."""

import numpy as np
import pytest
import torch

from robustill.core.errors import ConfigError
from robustill.data.augmentation import AUGMENTATIONS, Augmentation, cutmix


def batch(count=64, shape=(3, 8, 6), seed=0):
    return torch.randint(1, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("pad", [0, 1, 4])
def test_every_crop_is_a_window_of_the_padded_image(pad):
    images = batch()
    cropped = Augmentation([("crop", {"pad": pad})])(images, generator())
    assert cropped.shape == images.shape
    assert cropped.dtype == torch.uint8
    places = set()
    for before, after in zip(images.numpy(), cropped.numpy(), strict=True):
        padded = np.pad(before, ((0, 0), (pad, pad), (pad, pad)))
        found = [
            (top, left)
            for top in range(2 * pad + 1)
            for left in range(2 * pad + 1)
            if np.array_equal(padded[:, top : top + 8, left : left + 6], after)
        ]
        assert len(found) == 1
        places.update(found)
    assert len(places) >= min((2 * pad + 1) ** 2, 40)


def test_crops_are_uniform():
    image = torch.arange(1, 26, dtype=torch.uint8).view(1, 1, 5, 5).expand(9000, 1, 5, 5)
    corner = Augmentation(["shift"])(image, generator())[:, 0, 2, 2]
    # The middle pixel identifies one of 3×3 windows; each occurs 1000 ± 30 times.
    counts = torch.bincount(corner.long())
    assert counts.count_nonzero() == 9
    assert (counts[counts > 0] - 1000).abs().max() < 180


def test_flip_mirrors_half_of_the_images():
    images = batch(2000)
    flipped = Augmentation(["flip"])(images, generator()).numpy()
    mirrored = [
        np.array_equal(after, before[:, :, ::-1]) for before, after in zip(images.numpy(), flipped, strict=True)
    ]
    same = [np.array_equal(after, before) for before, after in zip(images.numpy(), flipped, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert abs(sum(mirrored) - 1000) < 135


def test_shift_is_a_crop_of_one_pixel():
    images = batch()
    shifted, cropped = (Augmentation([item])(images, generator()) for item in ("shift", ("crop", {"pad": 1})))
    assert torch.equal(shifted, cropped)


def test_augmentations_are_applied_in_order():
    images, numbers = batch(), generator()
    by_hand = Augmentation(["flip"])(Augmentation(["crop"])(images, numbers), numbers)
    assert torch.equal(Augmentation(["crop", "flip"])(images, generator()), by_hand)
    assert torch.equal(Augmentation([])(images, generator()), images)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_part_of_a_batch_is_augmented_as_in_the_whole(name):
    images, augmentation = batch(10), Augmentation([name, "flip"])
    whole = augmentation(images, generator())
    for part in (slice(0, 4), slice(4, 10), slice(3, 3)):
        assert torch.equal(augmentation(images[part], generator(), total=10, part=part), whole[part])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_input_and_global_generator_are_unchanged(name):
    images = batch()
    before, state = images.clone(), torch.get_rng_state()
    Augmentation([name])(images, generator())
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("item", "line"),
    [
        ("crops", "did you mean crop"),
        (("crop", {"padding": 3}), "cannot take"),
        (("crop", {"pad": -9}), "cannot take"),
        (("crop", {"pad": "4"}), "cannot take"),
        (("flip", {"p": 0.5}), "cannot take"),
    ],
)
def test_unknown_names_and_options_are_refused(item, line):
    with pytest.raises(ConfigError, match=line) as caught:
        Augmentation([item])
    assert "\n" not in str(caught.value)


def white(count, H=8, W=12):
    return torch.full((count, 2, H, W), 255, dtype=torch.uint8)


def changed(item, images, seed=0):
    return Augmentation([item])(images, torch.Generator().manual_seed(seed))


def box(hole):
    """Return top, left, height and width of a set of pixels, which must be a full rectangle; None if it is empty."""
    rows, columns = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
    if len(rows) == 0:
        return None
    top, left, bottom, right = (int(each) for each in (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1))
    assert hole[top:bottom, left:right].all()
    assert int(hole.sum()) == (bottom - top) * (right - left)
    return top, left, bottom - top, right - left


@pytest.mark.parametrize("size", [1, 4, 5, 40])
def test_cutout_blacks_out_a_square_around_any_pixel(size):
    images = changed(("cutout", {"size": size}), white(4000))
    assert torch.equal(images[:, 0], images[:, 1])
    possible = set()
    for y in range(8):
        for x in range(12):
            top, left = y - size // 2, x - size // 2
            rows, columns = range(max(top, 0), min(top + size, 8)), range(max(left, 0), min(left + size, 12))
            possible.add((rows.start, columns.start, len(rows), len(columns)))
    found = {box(image[0] == 0) for image in images}
    assert found == possible


def test_erased_rectangles_have_the_documented_sizes():
    images = changed(("erase", {"smallest": 0.1, "largest": 0.3}), white(4000, 32, 32))
    boxes = [box(image[0] == 0) for image in images]
    assert abs(sum(each is None for each in boxes) - 2000) < 160
    areas = np.array([each[2] * each[3] / 1024 for each in boxes if each is not None])
    ratios = np.array([each[3] / each[2] for each in boxes if each is not None])
    assert 0.09 < areas.min() < 0.12
    assert 0.28 < areas.max() < 0.32
    assert abs(areas.mean() - 0.2) < 0.01
    assert ratios.min() > 0.25
    assert ratios.max() < 4
    assert abs(np.log(ratios).mean()) < 0.06
    tops = np.array([each[0] / max(32 - each[2], 1) for each in boxes if each is not None])
    assert abs(tops.mean() - 0.5) < 0.04


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_erase_with_probability_zero_or_one(probability):
    images = changed(("erase", {"probability": probability}), white(50))
    assert [box(image[0] == 0) is not None for image in images] == [bool(probability)] * 50


def test_cropshift_moves_a_window_of_the_image():
    image = torch.arange(1, 97, dtype=torch.uint8).view(1, 1, 8, 12)
    images = changed(("cropshift", {"most": 6}), image.expand(3000, 1, 8, 12))
    removed, shifts = set(), set()
    for after in images[:, 0]:
        top, left, height, width = box(after > 0)
        first = int(after[top, left]) - 1
        from_top, from_left = divmod(first, 12)
        assert torch.equal(after[top : top + height, left : left + width],
                           image[0, 0, from_top : from_top + height, from_left : from_left + width])  # fmt: skip
        removed.add((8 - height, 12 - width))
        shifts.add((top - from_top, left - from_left))
    assert removed == {(rows, columns) for rows in range(7) for columns in range(7) if rows + columns <= 6}
    assert (0, 0) in shifts
    assert {(-1, 1), (1, -1), (2, 2), (-2, -2)} <= shifts


def test_cropshift_at_its_extremes():
    images = torch.randint(1, 256, (20, 3, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(changed(("cropshift", {"most": 0}), images), images)
    assert all(box(image[0] > 0) is not None for image in changed(("cropshift", {"most": 99}), images))


@pytest.mark.parametrize(
    "item",
    [
        ("cutout", {"size": 0}),
        ("cutout", {"size": "4"}),
        ("erase", {"probability": 2}),
        ("erase", {"smallest": 0.4, "largest": 0.2}),
        ("cropshift", {"most": -1}),
        ("randaugment", {"strength": 1.5}),
        ("randaugment", {"count": -1}),
        ("idbh", {"strength": -1}),
    ],
)
def test_invalid_options_are_refused(item):
    with pytest.raises(ConfigError, match="cannot take") as caught:
        Augmentation([item])
    assert "\n" not in str(caught.value)


def mixed(count=2000, share=1.0, H=8, W=12):
    """Mix images of which image i has the value i + 1 everywhere, so that a pixel identifies its image."""
    x = torch.arange(1.0, count + 1).view(-1, 1, 1, 1).expand(-1, 2, H, W).contiguous()
    y = torch.arange(count) % 5
    return x, y, *cutmix(x, y, 5, generator(), share=share)


def test_cutmix_mixes_labels_by_their_share_of_pixels():
    x, y, images, labels = mixed()
    for i in range(len(x)):
        own = (images[i] == x[i]).float().mean()
        expected = torch.zeros(5)
        expected[y[i]] += own
        expected[y[i - 1]] += 1 - own
        torch.testing.assert_close(labels[i], expected)
        assert ((images[i] == x[i]) | (images[i] == x[i - 1])).all()
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(len(x)))


def test_cutmix_pastes_a_rectangle_of_the_right_shape():
    x, _, images, _ = mixed(H=32, W=64)
    shares, middles = [], []
    for i in range(len(x)):
        hole = images[i, 0] == x[i - 1, 0, 0, 0]
        rows, columns = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
        shares.append(float(hole.float().mean()))
        if not len(rows):
            continue
        height, width = int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)
        assert int(hole.sum()) == height * width
        if rows[0] > 0 and rows[-1] < 31 and columns[0] > 0 and columns[-1] < 63:
            assert abs(width - 2 * height) <= 1
        middles.append((int(rows[0]) + height / 2) / 32)
    # Of an area uniform in [0,1], with sides s = sqrt(area): for a uniform centre, s − s²/4 of a side falls inside.
    s = np.sqrt(np.linspace(0, 1, 10001))
    assert abs(np.mean(shares) - np.mean((s - s**2 / 4) ** 2)) < 0.02
    assert abs(np.mean(middles) - 0.5) < 0.03


def test_cutmix_changes_a_share_of_the_images():
    x, y, images, labels = mixed(share=0.3)
    different = (images != x).flatten(1).any(1)
    assert 0.25 < different.float().mean() < 0.32
    assert torch.equal(labels[~different], torch.eye(5)[y[~different]])
    x, y, images, labels = mixed(share=0.0)
    assert torch.equal(images, x)
    assert torch.equal(labels, torch.eye(5)[y])


def test_cutmix_depends_on_its_generator_alone():
    x, y = torch.rand(6, 3, 4, 4), torch.arange(6) % 2
    before, state = x.clone(), torch.get_rng_state()
    one, two, other = (cutmix(x, y, 2, generator(seed), share=1.0)[0] for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
