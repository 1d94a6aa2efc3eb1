"""Corruptions have their published strength, and do not depend on the batch; rotations agree with SciPy's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from robustill.core.errors import ConfigError, DataError
from robustill.data.corruptions import (
    ANGLES,
    CORRUPTIONS,
    SHIFTS,
    corrupt,
    load_official,
    moved_copies,
    official_labels,
)

BLURS = ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform", "pixelate")
GREY = torch.full((2, 3, 32, 32), 0.6)


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """Eight smooth random images with edges."""
    draws = torch.Generator().manual_seed(0)
    coarse = torch.rand(8, 3, 6, 6, generator=draws)
    return torch.nn.functional.interpolate(coarse, (32, 32), mode="nearest") * 0.8 + 0.1


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_corruption_is_that_of_the_image_and_not_of_its_batch(kind: str, pictures: Tensor) -> None:
    together = corrupt(pictures[:3], kind, 4, ids=[5, 6, 7])
    alone = torch.cat([corrupt(pictures[i : i + 1], kind, 4, ids=[5 + i]) for i in range(3)])
    assert torch.equal(together, alone)
    assert together.shape == pictures[:3].shape
    levels = together * 255
    assert torch.equal(levels, levels.round())
    assert levels.min() >= 0
    assert levels.max() <= 255


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_higher_severity_changes_an_image_more(kind: str, pictures: Tensor) -> None:
    changes = [float((corrupt(pictures, kind, level, ids=range(8)) - pictures).pow(2).mean()) for level in (1, 3, 5)]
    # Elastic deformations differ in kind from level to level: global first, then local.
    assert changes[0] > 0
    assert changes[-1] > (0 if kind == "elastic_transform" else 1.2 * changes[0]), changes


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 20, 28), (3, 64, 64)])
def test_images_of_other_sizes_and_colours(kind: str, shape: tuple[int, int, int]) -> None:
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(1))
    assert corrupt(x, kind, 5, ids=[0, 1]).shape == x.shape


@pytest.mark.parametrize("kind", BLURS)
def test_a_blur_leaves_a_plain_image_as_it_is(kind: str) -> None:
    corrupted = corrupt(GREY, kind, 5, ids=[0, 1])
    assert torch.allclose(corrupted, GREY, atol=1e-6)


def test_noise_has_its_published_strength() -> None:
    plain = torch.full((4, 3, 64, 64), 0.5)
    gaussian = corrupt(plain, "gaussian_noise", 5, ids=range(4)) - plain
    assert float(gaussian.std()) == pytest.approx(0.10, rel=0.02)
    shot = corrupt(plain, "shot_noise", 5, ids=range(4)) - plain
    assert float(shot.std()) == pytest.approx((0.5 / 50) ** 0.5, rel=0.02), "a Poisson number of 50·x photons"
    impulse = corrupt(plain, "impulse_noise", 5, ids=range(4))
    assert float((impulse == 0).float().mean()) == pytest.approx(0.035, abs=0.003)
    assert float((impulse == 1).float().mean()) == pytest.approx(0.035, abs=0.003)


def test_contrast_is_the_formula(pictures: Tensor) -> None:
    mean = pictures.mean(dim=(2, 3), keepdim=True)
    expected = ((0.15 * (pictures - mean) + mean) * 255).round() / 255
    assert torch.allclose(corrupt(pictures, "contrast", 5, ids=range(8)), expected, atol=1e-6)


def test_brightness_keeps_the_hue() -> None:
    x = torch.tensor([0.4, 0.2, 0.1]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    brighter = corrupt(x, "brightness", 3, ids=[0])[0, :, 0, 0]
    assert torch.allclose(brighter, torch.tensor([0.55, 0.275, 0.1375]), atol=0.003), "value + 0.15, times the colour"


def test_another_seed_draws_other_noise() -> None:
    noises = [corrupt(GREY, "gaussian_noise", 1, ids=[0, 1], seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(noises[0], noises[1])
    assert not torch.equal(noises[0], noises[2])


@pytest.mark.parametrize(("kind", "severity"), [("rain", 1), ("fog", 0), ("fog", 6)])
def test_unknown_corruptions_are_refused(kind: str, severity: int) -> None:
    with pytest.raises(ConfigError, match="expected"):
        corrupt(GREY, kind, severity, ids=[0, 1])


def test_rotations_agree_with_scipy(pictures: Tensor) -> None:
    smooth = torch.from_numpy(ndimage.gaussian_filter(pictures[:1].numpy(), (0, 0, 2, 2))).float()
    copies = list(moved_copies(smooth))
    assert len(copies) == len(ANGLES) * len(SHIFTS) ** 2
    middle = len(SHIFTS) ** 2 // 2
    for number, angle in enumerate(ANGLES):
        copy = copies[number * len(SHIFTS) ** 2 + middle][0, 0].numpy()
        rotated = ndimage.rotate(smooth[0, 0].numpy(), angle, reshape=False, order=1)
        assert np.abs(copy - rotated)[6:-6, 6:-6].max() < 0.01, angle
    assert any(torch.equal(copy, smooth) for copy in copies)


def test_shifts_move_the_image_and_leave_black() -> None:
    x = torch.ones(1, 1, 32, 32)
    level = ANGLES.index(0.0) * len(SHIFTS) ** 2
    up_and_left, down_and_right = (list(moved_copies(x))[level + k][0, 0] for k in (0, len(SHIFTS) ** 2 - 1))
    assert torch.equal(up_and_left[:30, :30], torch.ones(30, 30))
    assert up_and_left[30:].sum() == 0
    assert torch.equal(down_and_right[2:, 2:], torch.ones(30, 30))
    assert down_and_right[:, :2].sum() == 0


def official(folder: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    np.save(folder / "fog.npy", images)
    np.save(folder / "labels.npy", labels)
    return folder


def test_the_official_files_are_read_by_severity(tmp_path: Path) -> None:
    images = np.arange(5 * 4, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    folder = official(tmp_path, images, np.tile([3, 1, 0, 2], 5))
    assert load_official(folder, "fog", 2, num_images=4, image_shape=(3, 2, 2))[:, 0, 0, 0].tolist() == [4, 5, 6, 7]
    assert official_labels(folder)[:4].tolist() == [3, 1, 0, 2]


def test_other_files_in_their_place_are_refused(tmp_path: Path) -> None:
    folder = official(tmp_path, np.zeros((7, 2, 2, 3), np.uint8), np.zeros(7, np.int64))
    with pytest.raises(DataError, match=r"uint8 \[7, 2, 2, 3\]: expected uint8 \[20, 2, 2, 3\]"):
        load_official(folder, "fog", 1, num_images=4, image_shape=(3, 2, 2))
    with pytest.raises(DataError, match=r"expected uint8 \[5, 4, 4, 3\]"):
        load_official(folder, "fog", 1, num_images=1, image_shape=(3, 4, 4))
    with pytest.raises(DataError, match=r"expected integers \[5·N\]"):
        official_labels(folder)
    with pytest.raises(DataError, match=r"snow\.npy is missing"):
        load_official(folder, "snow", 1, num_images=4, image_shape=(3, 2, 2))
    (folder / "snow.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match="cannot be read"):
        load_official(folder, "snow", 1, num_images=4, image_shape=(3, 2, 2))
    np.save(folder / "frost.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        load_official(folder, "frost", 1, num_images=4, image_shape=(3, 2, 2))
