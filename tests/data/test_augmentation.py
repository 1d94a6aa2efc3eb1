import numpy as np
import pytest
import torch

from robustill.core.errors import ConfigError
from robustill.data.augmentation import AUGMENTATIONS, Augmentation


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


def test_crop_places_are_uniform():
    image = torch.arange(1, 26, dtype=torch.uint8).view(1, 1, 5, 5).expand(9000, 1, 5, 5)
    corner = Augmentation(["shift"])(image, generator())[:, 0, 2, 2]
    # The middle pixel tells which of 3×3 windows was cut; each 1000 ± 30.
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


def test_the_list_is_applied_in_order_with_one_generator():
    images, numbers = batch(), generator()
    by_hand = Augmentation(["flip"])(Augmentation(["crop"])(images, numbers), numbers)
    assert torch.equal(Augmentation(["crop", "flip"])(images, generator()), by_hand)
    assert torch.equal(Augmentation([])(images, generator()), images)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_part_of_a_batch_gets_the_numbers_of_the_whole(name):
    images, augmentation = batch(10), Augmentation([name, "flip"])
    whole = augmentation(images, generator())
    for part in (slice(0, 4), slice(4, 10), slice(3, 3)):
        assert torch.equal(augmentation(images[part], generator(), total=10, part=part), whole[part])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_input_is_left_alone_and_the_global_generator_too(name):
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
def test_unknown_names_and_options(item, line):
    with pytest.raises(ConfigError, match=line) as caught:
        Augmentation([item])
    assert "\n" not in str(caught.value)
