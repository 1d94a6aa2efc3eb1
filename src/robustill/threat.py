"""The threat model: the images an adversary may choose, a ball around x intersected with [0,1]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from robustill.core.errors import ConfigError, did_you_mean
from robustill.core.randomness import Generators, gaussian, uniform
from robustill.core.validation import check_generators, check_images, check_same_shape, describe

Norm = Literal["linf", "l2", "l1"]
# Newton steps of the l2 projection. It needs at most one for each distinct set of clipped pixels; images take 3 to 5.
_L2_STEPS = 12
# Bisection steps for the l1 threshold, before the exact linear solve.
_L1_STEPS = 26


def parse_eps(value: float | str) -> float:
    """Parse a radius given as a number or a fraction.

    Raises:
        ConfigError: the value is neither.

    Example:
        >>> parse_eps("8/255") == 8 / 255
        True
    """
    try:
        if isinstance(value, str):
            numerator, slash, denominator = value.partition("/")
            return float(numerator) / float(denominator) if slash else float(numerator)
        if not isinstance(value, bool):
            return float(value)
    # A tensor of several values raises a RuntimeError.
    except (TypeError, ValueError, ZeroDivisionError, RuntimeError, OverflowError):
        pass
    raise ConfigError(f"eps {describe(value)}: expected a number or a fraction such as 8/255")


@dataclass(frozen=True, kw_only=True)
class Threat:
    """The set {x' : ‖x' − x‖ ≤ eps, 0 ≤ x' ≤ 1} around every clean image x.

    Args:
        norm: "linf", "l2" or "l1", over all pixels and channels of one image.
        eps: the radius, in units of [0,1]; text such as "8/255" is converted to a number.

    Raises:
        ConfigError: the norm is unknown; eps is no number, negative, not finite or above 1e9; an l∞ radius is above 1.

    Example:
        >>> Threat(norm="linf", eps=0.1).project(torch.tensor([[[[0.9]]]]), torch.tensor([[[[0.5]]]]))
        tensor([[[[0.6000]]]])
    """

    norm: Norm
    eps: float

    def __post_init__(self) -> None:
        if not isinstance(self.eps, float):
            object.__setattr__(self, "eps", parse_eps(self.eps))
        if self.norm not in get_args(Norm):
            raise ConfigError(f"norm {self.norm!r} is unknown: {did_you_mean(str(self.norm), get_args(Norm))}")
        # Above 1e9, which is more than the distance of any two images, squares would overflow float32.
        if not 0 <= self.eps <= 1e9:
            raise ConfigError(f"eps {self.eps:g}: expected a finite radius of at least 0")
        if self.norm == "linf" and self.eps > 1:
            raise ConfigError(
                f"eps {self.eps:g} is larger than 1, but images are in [0,1]: did you mean {self.eps:g}/255?"
            )

    @classmethod
    def parse(cls, text: str | Threat) -> Threat:
        """Parse a threat from "norm:eps", for example "linf:8/255"; a Threat is returned unchanged.

        Raises:
            ConfigError: the text has another form.
        """
        if isinstance(text, Threat):
            return text
        if not isinstance(text, str):
            raise ConfigError(
                f"threat is a {type(text).__name__}, expected text such as linf:8/255 or a robustill.Threat; for a "
                "configuration it is config.threat.build()"
            )
        norm, colon, eps = text.partition(":")
        if not colon:
            raise ConfigError(f"threat {text!r}: expected NORM:EPS, such as linf:8/255")
        return cls(norm=norm.strip().lower(), eps=parse_eps(eps))  # type: ignore[arg-type]

    def __str__(self) -> str:
        eps, levels = f"{self.eps:g}", self.eps * 255
        if len(eps) > 5 and abs(levels - round(levels)) < 1e-6:
            eps = f"{round(levels)}/255"
        return f"{self.norm}:{eps}"

    def widest(self, image_shape: Sequence[int]) -> float:
        """Return the largest distance of two images in [0,1]: for n values in an image, 1 in l∞, √n in l2 and n in l1.

        Args:
            image_shape: (C,H,W).
        """
        values = math.prod(image_shape)
        return {"linf": 1.0, "l2": math.sqrt(values), "l1": float(values)}[self.norm]

    def check_fits(self, image_shape: Sequence[int], what: str) -> None:
        """Check that the radius is at most the largest distance of two images.

        Args:
            image_shape: (C,H,W).
            what: the name of the images, for the error.

        Raises:
            ConfigError: the radius is larger.
        """
        widest = self.widest(image_shape)
        if self.eps > widest:
            raise ConfigError(
                f"threat {self}: no two images of {what} are further apart than {widest:g} in {self.norm}, since "
                "pixels are in [0,1]: give a smaller radius"
            )

    def start(self, x: Tensor, generator: Generators | None = None) -> Tensor:
        """Draw a random feasible point: uniform in the ball, then clamped to [0,1].

        Args:
            x: clean images, [B,C,H,W].
            generator: one for the batch, or a sequence with one for each sample.

        Returns:
            [B,C,H,W].

        Raises:
            DataError: x is no tensor of floating-point numbers [B,C,H,W].
            ConfigError: the generator is something else.
        """
        check_images(x, allow_empty=True)
        check_generators("generator", generator, len(x), x.device)
        if self.norm == "linf":
            delta = (2 * uniform(x, generator) - 1) * self.eps
        else:
            delta = self._uniform_in_ball(x, generator)
        return (x + delta).clamp(0, 1)

    def _uniform_in_ball(self, x: Tensor, generator: Generators | None) -> Tensor:
        d = x[0].numel()
        if self.norm == "l2":
            direction = gaussian(x, generator)
            direction = direction / _norm2(direction).clamp_min(1e-30)
        else:
            # Signed exponentials divided by their sum are uniform on the l1 sphere. They are drawn in float32 at least:
            # in 16 bits the largest size below 1 would round to 1.
            signed = 2 * uniform(x.to(torch.promote_types(x.dtype, torch.float32)), generator) - 1
            # The generator can return 0, hence a size of 1, whose logarithm would make the whole image NaN.
            exponentials = -torch.log1p(-signed.abs().clamp(max=1 - 2**-24)) * signed.sign()
            length = exponentials.abs().sum(dim=(1, 2, 3), keepdim=True).clamp_min(1e-30)
            direction = (exponentials / length).to(x.dtype)
        radius = uniform(x[:, :1, :1, :1], generator) ** (1 / d)
        return direction * radius * self.eps

    def ascent(self, grad: Tensor) -> Tensor:
        """Return the direction of an ascent step; multiplied by `step_size` and projected it is a PGD step.

        l∞: sign(g). l2: g / ‖g‖₂. l1: g / ‖g‖∞, which the exact projection turns into a sparse step: its fixed points
        are the maximisers, also where pixels meet the bounds of [0,1], while one-pixel steps e_i·sign(g_i) get stuck.

        Args:
            grad: gradient of the loss, [B,C,H,W]; a gradient of zero gives a step of zero.

        Returns:
            [B,C,H,W].

        Raises:
            DataError: grad is no tensor of floating-point numbers [B,C,H,W].
        """
        check_images(grad, "grad", allow_empty=True)
        if self.norm == "linf":
            return grad.sign()
        # First divide by the largest entry: squares of entries below 1e-19, as in confident networks, underflow.
        largest = grad.abs().amax(dim=(1, 2, 3), keepdim=True)
        relative = grad / torch.where(largest > 0, largest, torch.ones_like(largest))
        return relative if self.norm == "l1" else relative / _norm2(relative).clamp_min(1.0)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Return the feasible point nearest to x_adv (Euclidean), for the ball and [0,1] together.

        With d = x_adv − x, and clip to [0,1]. l∞: clip(x + clip(d, −eps, eps)). l2: clip(x + s·d) with the largest
        feasible s ≤ 1. l1: clip(x + sign(d)·max(|d| − λ, 0)) with the smallest feasible λ ≥ 0.

        Args:
            x_adv: any finite values below 1e18, [B,C,H,W].
            x: clean images in [0,1], [B,C,H,W].

        Returns:
            [B,C,H,W], feasible up to float rounding.

        Raises:
            DataError: the two differ in shape, or are no tensors of floating-point numbers [B,C,H,W].
        """
        _check_pair(x_adv, x)
        if self.norm == "linf":
            return torch.minimum(torch.maximum(x_adv, x - self.eps), x + self.eps).clamp(0, 1)
        delta = x_adv - x
        room = torch.where(delta > 0, 1 - x, x)
        if self.norm == "l2":
            return (x + self._l2_scale(delta, room) * delta).clamp(0, 1)
        threshold = self._l1_threshold(delta.abs(), room)
        return (x + delta.sign() * (delta.abs() - threshold).clamp_min(0)).clamp(0, 1)

    def _l2_scale(self, delta: Tensor, room: Tensor) -> Tensor:
        """Return the largest feasible s ≤ 1, where `room` is the distance of each pixel to its bound."""
        # The squared length Σ min(t·d², room²) is concave and piecewise linear in t = s², so Newton's method from the
        # left never overshoots: every iterate is feasible, and the last is exactly the root.
        squares, bounds = delta.square(), room.square()
        clips_at = bounds / squares
        t = (self.eps**2 / _sum(squares).clamp_min(1e-30)).clamp(max=1.0)
        for _ in range(_L2_STEPS):
            free = clips_at > t
            slope = _sum(torch.where(free, squares, 0.0))
            fixed = _sum(torch.where(free, 0.0, bounds))
            root = (self.eps**2 - fixed) / slope.clamp_min(1e-30)
            before, t = t, torch.maximum(root, t).clamp(max=1.0)
            # More steps would change nothing; on a GPU the comparison would cost a synchronisation instead.
            if t.device.type == "cpu" and torch.equal(t, before):
                break
        return t.sqrt()

    def _l1_threshold(self, size: Tensor, room: Tensor) -> Tensor:
        """Return the smallest feasible λ ≥ 0, where `room` is the distance of each pixel to its bound."""

        def length(threshold: Tensor) -> Tensor:
            return _sum((size - threshold).clamp_min(0).minimum(room))

        low = torch.zeros_like(size[:, :1, :1, :1])
        high = size.amax(dim=(1, 2, 3), keepdim=True)
        for _ in range(_L1_STEPS):
            middle = (low + high) / 2
            outside = length(middle) > self.eps
            low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
        # Between low and high the length is linear, except for breakpoints closer than 1e-8 of the range.
        at_low, at_high = length(low), length(high)
        share = (self.eps - at_high) / (at_low - at_high)
        threshold = torch.where(at_low <= self.eps, low, high - share * (high - low))
        # Far from x that range has many breakpoints; its upper end is always feasible.
        return torch.where(length(threshold) > self.eps * (1 + 1e-6), high, threshold)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Compute ‖x_adv − x‖ in the norm of this threat, one value for each image.

        Returns:
            [B], in units of [0,1].

        Raises:
            DataError: as in `project`.
        """
        _check_pair(x_adv, x)
        order = {"linf": math.inf, "l2": 2, "l1": 1}[self.norm]
        distance: Tensor = torch.linalg.vector_norm((x_adv - x).flatten(1), ord=order, dim=1)
        return distance

    def contains(self, x_adv: Tensor, x: Tensor, tolerance: float = 1e-5) -> Tensor:
        """Return whether each image is in the ball and in [0,1], up to float rounding.

        Args:
            x_adv: images, [B,C,H,W].
            x: clean images, [B,C,H,W].
            tolerance: relative to the radius. The absolute tolerance is at least 1e-6, or 1e-6·√d in l1 with d pixels,
                whose roundings add up.

        Returns:
            bool [B].

        Raises:
            DataError: as in `project`.
        """
        _check_pair(x_adv, x)
        flat = x_adv.flatten(1)
        rounding = 1e-6 * (math.sqrt(flat.shape[1]) if self.norm == "l1" else 1.0)
        within = self.distance(x_adv, x) <= self.eps + max(tolerance * self.eps, rounding)
        return within & (flat.amin(dim=1) >= 0) & (flat.amax(dim=1) <= 1)


def _check_pair(x_adv: Tensor, x: Tensor) -> None:
    check_images(x, allow_empty=True)
    check_images(x_adv, "x_adv", allow_empty=True)
    check_same_shape("x_adv", x_adv, "x", x)


def _sum(values: Tensor) -> Tensor:
    return values.sum(dim=(1, 2, 3), keepdim=True)


def _norm2(values: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(values, dim=(1, 2, 3), keepdim=True)
    return norm
