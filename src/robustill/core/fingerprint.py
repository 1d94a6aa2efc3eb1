"""The fingerprint of a network: its logits and input gradients on a few fixed images, compared with a tolerance.

A kept result, such as the state of an unfinished attack or a cache of logits, belongs to what a network computes:
weights, code and normalisation together. The checksum of its tensors tells none of the last two. The fingerprint does,
and it stays the same up to rounding on another device, with another batch size and another number of threads.

A fingerprint is of one mode: in eval mode, that of attacks and answers, it does not show what a network computes in
train mode. A run has one of each for the networks that it trains.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustill.core.checksums import sha256
from robustill.core.contexts import evaluating, frozen, full_float32
from robustill.core.randomness import generator

_FORMAT = 1
# Images of uniform noise, and the caller's own behind them.
_NUM_NOISE, _NUM_OWN = 4, 4
# Images in a pass in eval mode: memory for two is there where an attack is to run. In train mode all of them are one
# batch: normalised over two images alone, every feature would be 1 or -1.
_CHUNK = 2
# Numbers that are kept of each image's logits and of its gradient: random projections where there are more.
_NUM_KEPT = 16
# The images are moved by this share to measure what rounding changes.
_NUDGE = 1e-6
# Relative differences above which two passes are random: of float32 logits, of other logits, of gradients.
_RANDOM_FLOAT32, _RANDOM_OTHER, _RANDOM_GRADIENT = 1e-4, 1e-2, 5e-2
# A row of logits or gradients that is smaller than this share of the others is compared with them.
_SMALL_ROW = 0.1
# The tolerance is ten times what rounding changes, in these bounds: lowest and highest for logits, for gradients.
_MARGIN = 10.0
_LOGIT_BOUNDS, _GRADIENT_BOUNDS = (1e-4, 5e-2), (2e-2, 0.5)
# BatchNorm in train mode multiplies rounding, which differs between algorithms of one convolution, more than a nudge
# shows: relative changes of logits and gradients that it is taken to cause there at least.
_TRAIN_ROUNDING = (2e-3, 5e-2)

RANDOM = "draws random numbers"
"""The note of a network whose passes over the same images differ."""

UNSTABLE = "changes its logits with the last digit of an image"
"""The note of a network whose logits are decided by rounding."""

FAILED = "has no fingerprint, because it fails on the fixed images"
"""The note of a network that raises an exception, or returns something other than logits."""

Predict = Callable[[Tensor], Tensor]

_NOTHING = torch.empty(0, 0)


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """What a network computes on a few fixed images.

    Args:
        logits: at most 16 numbers an image, float32 [N,P]; [0,0] if there is a note.
        gradients: of a fixed sum of the logits with respect to each image, float32 [N,P]; zeros where there are none.
        rounding: the relative changes of each image's logits and gradient that rounding causes, float32 [N,2].
        note: why logits and gradients cannot be compared, RANDOM, UNSTABLE or FAILED; "" if they can.
        tensors: the sha256 of the network's tensors if there is a note, else "".
    """

    logits: Tensor = _NOTHING
    gradients: Tensor = _NOTHING
    rounding: Tensor = _NOTHING
    note: str = ""
    tensors: str = ""

    def difference(self, stored: object) -> str | None:
        """Return what distinguishes this network from that of a stored fingerprint; None if nothing does.

        Args:
            stored: what `to_json` returned. Nothing is known about a fingerprint that is missing, damaged, or of
                another version, so that nothing distinguishes it.
        """
        other = Fingerprint.from_json(stored)
        if other is None or FAILED in (self.note, other.note):
            return None
        if self.note != other.note:
            return f"only one of the two {self.note or other.note}"
        if self.note:
            return None if self.tensors == other.tensors else "its weights are others"
        rows = min(len(self.logits), len(other.logits))
        rounding = torch.maximum(self.rounding[:rows], other.rounding[:rows])
        logits = _relative_differences(self.logits[:rows], other.logits[:rows])
        if bool((logits > _tolerances(rounding[:, 0], _LOGIT_BOUNDS)).any()):
            return f"its logits on fixed images differ by {_percent(logits)}"
        gradients = _relative_differences(self.gradients[:rows], other.gradients[:rows])
        # Rounding may move a single image across a kink.
        if int((gradients > _tolerances(rounding[:, 1], _GRADIENT_BOUNDS)).sum()) > 1:
            return f"its input gradients on fixed images differ by {_percent(gradients)}"
        return None

    def on_noise(self) -> Fingerprint:
        """Return the fingerprint on the images of noise alone, to compare it with one that has other images of its own.

        Those of noise are the same for all networks of one image shape.
        """
        own = {name: getattr(self, name)[:_NUM_NOISE] for name in ("logits", "gradients", "rounding")}
        return replace(self, **own)

    def to_json(self) -> dict[str, Any]:
        """Return the fingerprint as JSON values, about one kilobyte; `from_json` reads them."""
        if self.note:
            return {"format": _FORMAT, "note": self.note, "tensors": self.tensors}
        return {
            "format": _FORMAT,
            "images": len(self.logits),
            "logits": _encode(self.logits),
            "gradients": _encode(self.gradients),
            "rounding": _encode(self.rounding),
        }

    @classmethod
    def from_json(cls, stored: object) -> Fingerprint | None:
        """Return a stored fingerprint; None if it is missing, damaged, or of another version."""
        if not isinstance(stored, Mapping) or stored.get("format") != _FORMAT:
            return None
        if "note" in stored:
            return cls(note=str(stored["note"]), tensors=str(stored.get("tensors", "")))
        try:
            num_images = int(stored["images"])
            logits, gradients, rounding = (
                _decode(stored[name], num_images) for name in ("logits", "gradients", "rounding")
            )
        except (KeyError, TypeError, ValueError, ArithmeticError):
            return None
        if num_images < 1 or rounding.shape[1] != 2:
            return None
        return cls(logits, gradients, rounding)


@full_float32()
def compute_fingerprint(
    predict: Predict,
    image_shape: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    images: Tensor | None = None,
    keep_modes: bool = False,
) -> Fingerprint:
    """Compute the fingerprint of a network, in three passes over at most eight images.

    Modes, flags, buffers and the global random generators are restored.

    Args:
        predict: images [B,C,H,W] in [0,1] to logits [B,K].
        image_shape: (C,H,W).
        device: where the network is.
        images: further images in [0,1], [B,C,H,W], of which the first four are used; fingerprints with different
            images are compared on noise alone only if one of them has none.
        keep_modes: leave every module in its mode, such as train mode, in which the images are one batch; by default
            a Module is put into eval mode for the time of the call. Networks with dropout draw random numbers then.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> stored = compute_fingerprint(network, (1, 2, 2)).to_json()
        >>> compute_fingerprint(network, (1, 2, 2)).difference(stored)
        >>> compute_fingerprint(lambda x: network(0.9 * x), (1, 2, 2)).difference(stored).split(" differ")[0]
        'its logits on fixed images'
    """
    noise = torch.rand((_NUM_NOISE, *image_shape), generator=generator(0, "fingerprint"))
    x = noise if images is None else torch.cat([noise, images[:_NUM_OWN].detach().float().cpu()])
    corners = torch.randint(0, 2, x.shape, generator=generator(0, "fingerprint", "nudge"))
    nudged = (x + _NUDGE * (corners - x)).to(device)
    x = x.to(device)
    chunk = len(x) if keep_modes else _CHUNK
    with _unchanged(predict, torch.device(device), keep_modes=keep_modes):
        try:
            logits, gradients, is_float32 = _compute(predict, x, chunk)
            repeated_logits, repeated_gradients, _ = _compute(predict, x, chunk)
            nudged_logits, nudged_gradients, _ = _compute(predict, nudged, chunk)
        except Exception:  # A network may raise anything; whoever uses it next reports it.
            return Fingerprint(note=FAILED, tensors=_tensors_sha256(predict))
    repeat = (_relative_differences(logits, repeated_logits), _relative_differences(gradients, repeated_gradients))
    nudge = (_relative_differences(logits, nudged_logits), _relative_differences(gradients, nudged_gradients))
    is_exact = is_float32 and not keep_modes
    limits = (_RANDOM_FLOAT32 if is_exact else _RANDOM_OTHER, _GRADIENT_BOUNDS[1] if keep_modes else _RANDOM_GRADIENT)
    note = ""
    if any(bool((each > limit).any()) for each, limit in zip(repeat, limits, strict=True)):
        note = RANDOM
    elif bool((nudge[0] > _LOGIT_BOUNDS[1]).any()):
        note = UNSTABLE
    if note:
        return Fingerprint(note=note, tensors=_tensors_sha256(predict))
    rounding = torch.stack([torch.maximum(*pair) for pair in zip(repeat, nudge, strict=True)], dim=1)
    if keep_modes:
        rounding = rounding.clamp_min(torch.tensor(_TRAIN_ROUNDING))
    return Fingerprint(_project(logits, "logits"), _project(gradients, "gradients"), rounding)


def _compute(predict: Predict, x: Tensor, chunk_size: int) -> tuple[Tensor, Tensor, bool]:
    """Return logits [N,K] and gradients [N,D] in float32 on the CPU, and whether the logits were float32."""
    logits, gradients, is_float32 = [], [], True
    for chunk in torch.split(x, chunk_size):
        leaf = chunk.clone().requires_grad_(True)
        with torch.enable_grad():
            # A copy, which a network may change in place.
            output = predict(leaf.clone())
            if output.ndim != 2 or len(output) != len(chunk):
                raise ValueError(f"logits of shape {list(output.shape)}")
            weights = torch.randn(output.shape[1], generator=generator(0, "fingerprint", "weights"))
            total = (output.float() * weights.to(output.device)).sum()
            gradient = torch.zeros_like(leaf)
            if total.requires_grad:
                (gradient,) = torch.autograd.grad(total, leaf, materialize_grads=True)
        is_float32 = is_float32 and output.dtype == torch.float32
        logits.append(output.detach().float().cpu())
        gradients.append(gradient.float().cpu().flatten(1))
    return torch.cat(logits), torch.cat(gradients), is_float32


def _project(values: Tensor, name: str) -> Tensor:
    """Return at most 16 numbers for each row: the row itself, or its products with random signs."""
    length = values.shape[1]
    if length <= _NUM_KEPT:
        return values
    signs = torch.randint(0, 2, (length, _NUM_KEPT), generator=generator(0, "fingerprint", name, length))
    projections: Tensor = values @ (2 * signs - 1).float() / length**0.5
    return projections


def _relative_differences(a: Tensor, b: Tensor) -> Tensor:
    """Return the norm of the difference of each row, as a share of the larger norm, float32 [N].

    A row that is small beside the others is compared with them. NaN and infinity differ from all but themselves.
    """
    if a.shape != b.shape:
        return torch.full((len(a),), torch.inf)
    finite = a.isfinite() & b.isfinite()
    is_other = (~finite & (a.nan_to_num(0.5) != b.nan_to_num(0.5))).any(dim=1)
    a, b = (torch.where(finite, each, 0).double() for each in (a, b))
    sizes = torch.maximum(a.norm(dim=1), b.norm(dim=1))
    sizes = torch.maximum(sizes, _SMALL_ROW * sizes.square().mean().sqrt()).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(is_other, torch.inf, (a - b).norm(dim=1) / sizes).float()


def _tolerances(rounding: Tensor, bounds: tuple[float, float]) -> Tensor:
    tolerances: Tensor = (_MARGIN * rounding).clamp(*bounds)
    return tolerances


def _percent(differences: Tensor) -> str:
    percent = min(100 * float(differences.max()), 999.0)
    return f"{percent:.2g} %" if percent < 100 else f"{percent:.0f} %"


@contextmanager
def _unchanged(predict: Predict, device: torch.device, *, keep_modes: bool) -> Iterator[None]:
    """Take the gradients of a Module's weights off, and put it into eval mode unless its modes are kept.

    It is restored afterwards, and so are all global random generators.
    """
    python, numpy = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        if isinstance(predict, nn.Module):
            if not keep_modes:
                stack.enter_context(evaluating(predict))
            stack.enter_context(frozen(predict))
            stack.enter_context(_restored_buffers(predict))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _restored_buffers(network: nn.Module) -> Iterator[None]:
    """Restore the buffers that were changed or replaced; others are not written to, because some cannot be."""
    before = [
        (module, name, buffer, buffer.clone())
        for module in network.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in before:
                module._buffers[name] = buffer
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def _tensors_sha256(predict: Predict) -> str:
    """Compute the SHA-256 of the names and values of a network's tensors; of nothing for any other function."""
    if not isinstance(predict, nn.Module):
        return sha256(b"")
    digests = []
    for name, value in predict.state_dict().items():
        if isinstance(value, Tensor):
            content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            digests.append(f"{name} {value.dtype} {list(value.shape)} {sha256(content)}")
    return sha256("\n".join(digests).encode())


def _encode(values: Tensor) -> str:
    return base64.b64encode(values.numpy().astype("<f4").tobytes()).decode("ascii")


def _decode(text: str, num_images: int) -> Tensor:
    values = np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32)
    return torch.from_numpy(values.reshape(num_images, -1))
