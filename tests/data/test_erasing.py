import numpy as np
import pytest
import torch

from robustill.core.errors import ConfigError
from robustill.data.augmentation import Augmentation


def white(count, H=8, W=12):
    return torch.full((count, 2, H, W), 255, dtype=torch.uint8)


def changed(item, images, seed=0):
    return Augmentation([item])(images, torch.Generator().manual_seed(seed))


def box(hole):
    """Top, left, height and width of a set of pixels, which must be a full rectangle; None if it is empty."""
    rows, columns = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
    if len(rows) == 0:
        return None
    top, left, bottom, right = (int(each) for each in (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1))
    assert hole[top:bottom, left:right].all()
    assert int(hole.sum()) == (bottom - top) * (right - left)
    return top, left, bottom - top, right - left


@pytest.mark.parametrize("size", [1, 4, 5, 40])
def test_cutout_is_the_part_inside_the_image_of_a_square_around_each_pixel(size):
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


def test_erased_rectangles_keep_their_shares_and_half_of_the_images_are_whole():
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
def test_erase_all_or_none(probability):
    images = changed(("erase", {"probability": probability}), white(50))
    assert [box(image[0] == 0) is not None for image in images] == [bool(probability)] * 50


def test_cropshift_is_a_window_at_another_place():
    image = torch.arange(1, 97, dtype=torch.uint8).view(1, 1, 8, 12)
    images = changed(("cropshift", {"most": 6}), image.expand(3000, 1, 8, 12))
    lost, moved = set(), set()
    for after in images[:, 0]:
        top, left, height, width = box(after > 0)
        first = int(after[top, left]) - 1
        from_top, from_left = divmod(first, 12)
        assert torch.equal(after[top : top + height, left : left + width],
                           image[0, 0, from_top : from_top + height, from_left : from_left + width])  # fmt: skip
        lost.add((8 - height, 12 - width))
        moved.add((top - from_top, left - from_left))
    assert lost == {(rows, columns) for rows in range(7) for columns in range(7) if rows + columns <= 6}
    assert (0, 0) in moved
    assert {(-1, 1), (1, -1), (2, 2), (-2, -2)} <= moved


def test_cropshift_of_nothing_and_of_more_than_there_is():
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
def test_options_that_cannot_be(item):
    with pytest.raises(ConfigError, match="cannot take") as caught:
        Augmentation([item])
    assert "\n" not in str(caught.value)
