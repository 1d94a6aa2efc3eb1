"""The time that attacks take on this machine: the passes of an image through the network, and one timed pass.

How many passes there are is counted by `robustill.attacks.suites.Suite.expected_passes`.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from robustill.attacks.pgd import run_pgd
from robustill.core.contexts import evaluating, frozen, full_float32
from robustill.core.contract import preserving_random_numbers
from robustill.core.randomness import generator
from robustill.losses import ce
from robustill.threat import Threat

_STEPS = 2
_SIZES = (1, 4, 16, 64, 64)
"""Batches that are timed one after the other: the first is short for a network that takes half a second an image."""
# After so long no further batch is timed.
_SECONDS = 0.5


def seconds_per_pass(network: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, gradient: bool = True) -> float:
    """Return the seconds that one image takes in one pass of an attack, forward or backward, in float32.

    Two steps of PGD are timed on more and more of the images, up to 64 or until half a second has passed.

    Args:
        network: on the device; its mode, its flags and torch's random numbers are restored.
        x: clean images, [B,C,H,W] in [0,1].
        y: labels, [B].
        threat: the images that the adversary may choose.
        gradient: whether the network has a gradient; without one, only forward passes are timed.
    """
    times: list[float] = []
    spent = 0.0
    with evaluating(network), frozen(network), preserving_random_numbers(x.device), full_float32():
        for size in _SIZES:
            images, labels = x[:size], y[:size]
            began = time.perf_counter()
            passes = _attack(network, images, labels, threat) if gradient else _classify(network, images)
            seconds = time.perf_counter() - began
            times.append(seconds / (passes * len(images)))
            spent += seconds
            if spent >= _SECONDS:
                break
    # The first time also selects kernels and allocates memory.
    return min(times[1:] or times)


def _attack(network: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> int:
    """Run PGD; return the number of passes."""
    draws, step_size = generator(0, "timed", device=x.device), threat.eps / 4
    x_adv = run_pgd(lambda z: ce(network(z), y), x, threat, steps=_STEPS, step_size=step_size, generator=draws)
    # float() waits for the device.
    float(x_adv.sum())
    return 2 * _STEPS


@torch.no_grad()
def _classify(network: nn.Module, x: Tensor) -> int:
    """Classify the images; return the number of passes."""
    float(network(x).sum())
    return 1
