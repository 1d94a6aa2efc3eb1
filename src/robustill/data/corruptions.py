"""The fifteen common corruptions of images at five severities, in the style of CIFAR-10-C, and the official files.

The constants are those that CIFAR-10-C published for 32×32 pixels; lengths grow with the image. Three kinds differ from
it in how they are drawn: frost is made of random ridges in place of photographs, glass moves every pixel at once, and
the blurs use exact discs and lines. Numbers compare networks with one another; those of the literature are of the
official files, which `load_official` reads.

Reference: Hendrycks and Dietterich 2019.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from robustill.core.errors import ConfigError, DataError
from robustill.core.randomness import gaussian, generator, uniform

SEVERITIES = (1, 2, 3, 4, 5)
_REFERENCE_SIZE = 32

Draws = Sequence[Generator]
"""A generator for each image, so that the corruption of an image does not depend on its batch."""


def corrupt(x: Tensor, kind: str, severity: int, *, ids: Sequence[int], seed: int = 0) -> Tensor:
    r"""Return corrupted images, rounded to 8 bits as a file would hold them.

    Args:
        x: images [B,C,H,W] in [0,1].
        kind: a key of CORRUPTIONS.
        severity: 1 to 5.
        ids: the number of each image in its data set; its corruption depends on it and not on the batch.
        seed: another seed draws other noise.

    Returns:
        Images [B,C,H,W] in [0,1], multiples of 1/255.

    Raises:
        ConfigError: the kind or the severity is unknown.

    Example:
        >>> import torch
        >>> corrupt(torch.full((1, 1, 2, 2), 0.5), "brightness", 1, ids=[0])[0, 0, 0, 0].mul(255).round().item()
        140.0
    """
    if kind not in CORRUPTIONS:
        raise ConfigError(f"corruption {kind!r} is unknown: expected one of {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ConfigError(f"severity is {severity}: expected 1 to 5")
    draws = [generator(seed, "corruption", kind, severity, number) for number in ids]
    corrupted = CORRUPTIONS[kind](x.cpu().float(), severity - 1, draws)
    return (corrupted.clamp(0, 1) * 255).round().div(255).to(x.device)


def load_official(
    folder: Path, kind: str, severity: int, *, num_images: int, image_shape: tuple[int, int, int]
) -> np.ndarray:
    """Return the images of one corruption from a folder with the published files of CIFAR-10-C or CIFAR-100-C.

    Args:
        folder: it holds KIND.npy, uint8 [5·N,H,W,C], the severities one after the other, and labels.npy.
        kind: a key of CORRUPTIONS.
        severity: 1 to 5.
        num_images: N, the number of test images.
        image_shape: (C, H, W) of the test images.

    Returns:
        uint8 [N,H,W,C], which is read from disk as it is used.

    Raises:
        DataError: a file is missing, is no array of images, or has another number of them.
    """
    images = _open_array(folder / f"{kind}.npy")
    channels, height, width = image_shape
    expected = (len(SEVERITIES) * num_images, height, width, channels)
    if images.dtype != np.uint8 or images.shape != expected:
        raise DataError(
            f"{folder / kind}.npy is {images.dtype} {list(images.shape)}: expected uint8 {list(expected)}, five "
            f"severities of {num_images} images"
        )
    return images[(severity - 1) * num_images : severity * num_images]


def official_labels(folder: Path) -> np.ndarray:
    """Return the labels of labels.npy, those of one severity after the other.

    Raises:
        DataError: the file is missing or is no array of labels.
    """
    labels = _open_array(folder / "labels.npy")
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) % len(SEVERITIES):
        raise DataError(f"{folder / 'labels.npy'} is {labels.dtype} {list(labels.shape)}: expected integers [5·N]")
    return labels.astype(np.int64)


def _open_array(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except FileNotFoundError:
        raise DataError(f"{file} is missing: expected the unpacked files of CIFAR-10-C or CIFAR-100-C") from None
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{file} cannot be read as an array of numbers: {error}") from None


# --- noise


def _gaussian_noise(x: Tensor, level: int, draws: Draws) -> Tensor:
    return x + (0.04, 0.06, 0.08, 0.09, 0.10)[level] * gaussian(x, draws)


def _shot_noise(x: Tensor, level: int, draws: Draws) -> Tensor:
    photons = (500, 250, 100, 75, 50)[level]
    return torch.stack([torch.poisson(each * photons, generator=g) / photons for each, g in zip(x, draws, strict=True)])


def _impulse_noise(x: Tensor, level: int, draws: Draws) -> Tensor:
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[level]
    u = uniform(x, draws)
    return torch.where(u < share / 2, 0.0, torch.where(u < share, 1.0, x))


# --- blur


def _defocus_blur(x: Tensor, level: int, draws: Draws) -> Tensor:
    radius, smoothing = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))[level]
    scale = _scale(x)
    return _filtered(_blurred(x, smoothing * scale), _disc(radius * scale).expand(len(x), -1, -1))


def _glass_blur(x: Tensor, level: int, draws: Draws) -> Tensor:
    sigma, distance, rounds = ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))[level]
    scale = _scale(x)
    reach = max(1, round(distance * scale))
    x = _blurred(x, sigma * scale)
    batch, _, height, width = x.shape
    for _ in range(rounds):
        # From -reach to reach - 1, as published.
        shift = (uniform(x.new_empty(batch, 2, height, width), draws) * 2 * reach).floor().long() - reach
        rows = (torch.arange(height)[:, None] + shift[:, 0]).clamp(0, height - 1)
        columns = (torch.arange(width) + shift[:, 1]).clamp(0, width - 1)
        flat = (rows * width + columns).flatten(1)[:, None].expand(-1, x.shape[1], -1)
        x = x.flatten(2).gather(2, flat).view_as(x)
    return _blurred(x, sigma * scale)


def _motion_blur(x: Tensor, level: int, draws: Draws) -> Tensor:
    radius, sigma = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))[level]
    return _moved(x, radius * _scale(x), sigma * _scale(x), draws)


def _zoom_blur(x: Tensor, level: int, draws: Draws) -> Tensor:
    largest = (1.05, 1.10, 1.15, 1.20, 1.25)[level]
    zooms = torch.arange(1, largest + 0.001, 0.01)
    zoomed = sum(_zoomed(x, float(zoom)) for zoom in zooms)
    return (x + zoomed) / (len(zooms) + 1)


# --- weather


def _snow(x: Tensor, level: int, draws: Draws) -> Tensor:
    mean, std, zoom, threshold, radius, sigma, kept = (
        (0.1, 0.2, 1.0, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1.0, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )[level]
    flakes = _zoomed(mean + std * gaussian(x[:, :1], draws), zoom)
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0, 1)
    flakes = _moved(flakes, radius * _scale(x), sigma * _scale(x), draws, centre=-90.0)
    white = torch.maximum(x, x.mean(dim=1, keepdim=True) * 1.5 + 0.5)
    return kept * x + (1 - kept) * white + flakes + flakes.flip(2, 3)


def _frost(x: Tensor, level: int, draws: Draws) -> Tensor:
    kept, weight = ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))[level]
    # Crystals are bright ridges, the zero lines of a rough random surface.
    surface = _cloud(x, 2.0, draws) - 0.5
    return kept * x + weight * (1 - (6 * surface.abs()).clamp(0, 1))


def _fog(x: Tensor, level: int, draws: Draws) -> Tensor:
    density, decay = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))[level]
    highest = x.amax(dim=(1, 2, 3), keepdim=True)
    return (x + density * _cloud(x, decay, draws)) * highest / (highest + density)


def _brightness(x: Tensor, level: int, draws: Draws) -> Tensor:
    value = x.amax(dim=1, keepdim=True)
    brighter = (value + (0.05, 0.1, 0.15, 0.2, 0.3)[level]).clamp(0, 1)
    # Hue and saturation stay; what is black has none.
    return torch.where(value > 0, x * brighter / value.clamp(min=1e-6), brighter.expand_as(x))


# --- digital


def _contrast(x: Tensor, level: int, draws: Draws) -> Tensor:
    mean = x.mean(dim=(2, 3), keepdim=True)
    return (x - mean) * (0.75, 0.5, 0.4, 0.3, 0.15)[level] + mean


def _elastic_transform(x: Tensor, level: int, draws: Draws) -> Tensor:
    amplitude, smoothness, corner = ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05),
                                     (0.1, 0.03, 0.03))[level]  # fmt: skip
    batch, _, height, width = x.shape
    size = min(height, width)
    # Three corners of a square are moved, and the image with them; then each pixel by a smooth random field.
    moves = (2 * uniform(x.new_empty(batch, 2, 3), draws) - 1) * corner * size
    third = size / 3
    corners = torch.tensor([[third, third, 1.0], [third, -third, 1.0], [-third, -third, 1.0]])
    affine = torch.linalg.solve(corners, (corners[:, :2] + moves.transpose(1, 2))).transpose(1, 2)
    grid = F.affine_grid(_normalised(affine, height, width), list(x.shape), align_corners=False)
    if amplitude:
        field = 2 * uniform(x.new_empty(batch, 2, height, width), draws) - 1
        field = _blurred(field, smoothness * size) * amplitude * size
        grid = grid + field.permute(0, 2, 3, 1) * 2 / torch.tensor([width, height])
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def _pixelate(x: Tensor, level: int, draws: Draws) -> Tensor:
    share = (0.95, 0.9, 0.85, 0.75, 0.65)[level]
    height, width = x.shape[2:]
    small = F.interpolate(x, (max(1, int(height * share)), max(1, int(width * share))), mode="area")
    return F.interpolate(small, (height, width), mode="nearest")


def _jpeg_compression(x: Tensor, level: int, draws: Draws) -> Tensor:
    from PIL import Image

    quality = (80, 65, 58, 50, 40)[level]
    pixels = (x * 255).round().byte().permute(0, 2, 3, 1).numpy()
    compressed = []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(file, "JPEG", quality=quality)
        decoded = np.asarray(Image.open(file))
        compressed.append(torch.from_numpy(decoded.reshape(image.shape).copy()))
    return torch.stack(compressed).permute(0, 3, 1, 2).float() / 255


# --- filters


def _scale(x: Tensor) -> float:
    """Return by how much lengths in pixels are larger than on images of 32×32."""
    return min(x.shape[2:]) / _REFERENCE_SIZE


def _filtered(x: Tensor, kernels: Tensor) -> Tensor:
    """Convolve each image with its own kernel, [B,k,k] of odd k; the border is reflected."""
    batch, channels, height, width = x.shape
    reach = kernels.shape[-1] // 2
    rows, columns = (_reflected(length, reach) for length in (height, width))
    padded = x[:, :, rows][:, :, :, columns].reshape(1, batch * channels, *(len(rows), len(columns)))
    weight = kernels[:, None].repeat_interleave(channels, dim=0).to(x)
    return F.conv2d(padded, weight, groups=batch * channels).view_as(x)


def _reflected(length: int, reach: int) -> Tensor:
    """Return the positions of a line with its reflections on both sides, which may be longer than the line."""
    if length == 1:
        return torch.zeros(1 + 2 * reach, dtype=torch.long)
    period = 2 * (length - 1)
    positions = torch.arange(-reach, length + reach) % period
    return torch.minimum(positions, period - positions)


def _blurred(x: Tensor, sigma: float) -> Tensor:
    """Convolve with a Gaussian of this standard deviation in pixels."""
    reach = math.ceil(3 * sigma)
    line = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * max(sigma, 1e-6) ** 2))
    kernel = torch.outer(line, line)
    return _filtered(x, (kernel / kernel.sum()).expand(len(x), -1, -1))


def _disc(radius: float) -> Tensor:
    """Return a disc as a kernel; a pixel counts by the share of its area inside, on a grid of 15×15 points."""
    reach = math.ceil(radius)
    fine = (torch.arange(15 * (2 * reach + 1)) + 0.5) / 15 - reach - 0.5
    inside = (fine[:, None] ** 2 + fine**2 <= radius**2).float()
    kernel = F.avg_pool2d(inside[None], 15)[0]
    return kernel / kernel.sum()


def _moved(x: Tensor, radius: float, sigma: float, draws: Draws, centre: float = 0.0) -> Tensor:
    """Blur along a line that starts at the pixel, at an angle within 45° of `centre`, with half a Gaussian."""
    angles = torch.deg2rad(centre + 90 * uniform(x.new_empty(len(x), 1), draws) - 45)
    reach = max(1, math.ceil(radius))
    kernels = x.new_zeros(len(x), 2 * reach + 1, 2 * reach + 1)
    batch = torch.arange(len(x))[:, None]
    # Half a pixel apart, so that a slanted line has no holes.
    steps = torch.arange(0, radius + 0.25, 0.5)
    weights = torch.exp(-(steps**2) / (2 * sigma**2)).expand(len(x), -1)
    rows = (reach + steps * torch.sin(angles)).round().long()
    columns = (reach + steps * torch.cos(angles)).round().long()
    kernels.index_put_((batch, rows, columns), weights, accumulate=True)
    return _filtered(x, kernels / kernels.sum(dim=(1, 2), keepdim=True))


def _zoomed(x: Tensor, zoom: float) -> Tensor:
    """Return the middle of the images, enlarged to their size."""
    theta = torch.tensor([[1 / zoom, 0, 0], [0, 1 / zoom, 0]]).expand(len(x), -1, -1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _cloud(x: Tensor, decay: float, draws: Draws) -> Tensor:
    """Return a random surface of every scale in [0,1], [B,1,H,W]; a step to half the scale divides it by `decay`."""
    batch, _, height, width = x.shape
    surface = x.new_zeros(batch, 1, height, width)
    cells, weight = 2, 1.0
    while cells <= 2 * max(height, width):
        coarse = uniform(x.new_empty(batch, 1, cells, cells), draws)
        surface += weight * F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
        cells, weight = 2 * cells, weight / decay
    low, high = surface.amin(dim=(2, 3), keepdim=True), surface.amax(dim=(2, 3), keepdim=True)
    return (surface - low) / (high - low).clamp(min=1e-6)


def _normalised(affine: Tensor, height: int, width: int) -> Tensor:
    """Return affine maps of pixels around the centre, [B,2,3], as torch's maps of coordinates from -1 to 1."""
    half = torch.tensor([width / 2, height / 2])
    scaled = affine[:, :, :2] * half / half[:, None]
    return torch.cat([scaled, affine[:, :, 2:] / half[:, None]], dim=2)


CORRUPTIONS: dict[str, Callable[[Tensor, int, Draws], Tensor]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}
"""The kinds of corruption by the names that CIFAR-10-C gave them: noise, blur, weather and digital."""


# --- rotations and shifts

ANGLES = (-15.0, -10.0, -5.0, 0.0, 5.0, 10.0, 15.0)
"""Degrees."""
SHIFTS = (-1 / 16, 0.0, 1 / 16)
"""Shares of the width and of the height: two pixels of 32."""


def moved_copies(x: Tensor) -> Iterator[Tensor]:
    """Yield the images rotated by each of ANGLES and shifted by each of SHIFTS in both directions; outside is black.

    Reference: Engstrom et al. 2019, with smaller angles.
    """
    height, width = x.shape[2:]
    for angle in ANGLES:
        cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        for down in SHIFTS:
            for right in SHIFTS:
                if angle == down == right == 0:
                    yield x
                    continue
                # In units of half the image, as torch's grids are.
                rotation = [[cosine, -sine * height / width, -2 * right], [sine * width / height, cosine, -2 * down]]
                theta = x.new_tensor(rotation).expand(len(x), -1, -1)
                grid = F.affine_grid(theta, list(x.shape), align_corners=False)
                yield F.grid_sample(x, grid, align_corners=False)
