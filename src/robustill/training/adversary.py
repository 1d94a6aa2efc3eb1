"""The adversary of an epoch: a radius and a number of steps, which may grow over the first epochs."""

from __future__ import annotations

from robustill.config.schema import Config


def eps_in_epoch(config: Config, epoch: int) -> float:
    """Return the radius of the training attack in an epoch, counted from 0."""
    first, last = config.attack.first_eps, config.threat.eps
    return last if first is None else linear_ramp(first, last, epoch, config.optim.epochs, config.attack.grow)


def steps_in_epoch(config: Config, epoch: int) -> int:
    """Return the PGD steps of the training attack in an epoch, counted from 0."""
    first, last = config.attack.first_steps, config.attack.steps
    return last if first is None else round(linear_ramp(first, last, epoch, config.optim.epochs, config.attack.grow))


def linear_ramp(first: float, last: float, epoch: int, epochs: int, share: float) -> float:
    """Return the value in an epoch of a linear ramp from `first` to `last`, which stays at `last` afterwards.

    first + (last − first)·min(1, epoch/(n−1)) with n = round(share·epochs).

    Args:
        first: the value in epoch 0, unless n is 0 or 1.
        last: the value from epoch n − 1 on.
        epoch: counted from 0.
        epochs: the number of all epochs.
        share: the share of the epochs over which the value changes, in (0,1].

    Example:
        >>> [linear_ramp(0.0, 8.0, epoch, 10, 0.5) for epoch in (0, 1, 2, 4, 9)]
        [0.0, 2.0, 4.0, 8.0, 8.0]
    """
    ramp_end = round(share * epochs) - 1
    if epoch >= ramp_end:
        return last
    return first + (last - first) * epoch / ramp_end
