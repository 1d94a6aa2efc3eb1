"""What goes wrong with the numbers of a training, told from its metrics: one line each, that says what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

_CLEAN = "validation_clean_accuracy"
_ROBUST = "validation_robust_accuracy"
_TRAINED = "train_adversarial_accuracy"
# Robust accuracy of a sound training wanders by a few points; catastrophic overfitting takes nearly all of it at once.
_SHARE, _POINTS = 0.5, 0.1
_LARGER = 10.0
# A training that will come to something is beyond chance long before.
_BEGUN = 10
# Sooner, the student knows little itself; later, it may know its images by heart.
_QUARTER = 0.25
MEND = "try a smaller optim.learning_rate, optim.clip_norm or optim.rollbacks"
"""Of numbers that are no longer finite."""

Line = Mapping[str, Any]


def not_finite(loss: float, weights: bool) -> str | None:
    """What of an epoch is not finite; None if all is.

    Args:
        loss: summed over the epoch.
        weights: whether all are finite; the last step's gradient may have been infinite where its loss was not.
    """
    if math.isfinite(loss) and weights:
        return None
    return "weights that are not finite" if math.isfinite(loss) else f"a loss of {loss}"


def catastrophic_overfitting(lines: Sequence[Line], line: Line, images: int) -> str | None:
    """Catastrophic overfitting: robust accuracy below half of the best so far, while training accuracy is not lower.

    A fall within three standard errors √(p(1−p)/N) of the best, or of less than ten points, is none.

    Args:
        lines: of the epochs before.
        line: of this epoch.
        images: N, that robust accuracy was measured on.

    Example:
        >>> before = {"epoch": 1, "validation_robust_accuracy": 0.4, "train_adversarial_accuracy": 0.5}
        >>> now = {"epoch": 2, "validation_robust_accuracy": 0.02, "train_adversarial_accuracy": 0.8}
        >>> collapse([before], now, 1000)
        'robust accuracy on held-out images fell from 0.400 (epoch 1) to 0.020, while it rose from 0.500 to 0.800 in training: catastrophic overfitting'
    """  # noqa: E501
    looks = [each for each in lines if _ROBUST in each]
    if not looks or _ROBUST not in line:
        return None
    best = max(looks, key=lambda each: each[_ROBUST])
    was, now = best[_ROBUST], line[_ROBUST]
    points = max(_POINTS, 3 * math.sqrt(was * (1 - was) / images))
    if now > _SHARE * was or now > was - points or line[_TRAINED] < best[_TRAINED]:
        return None
    return (
        f"robust accuracy on held-out images fell from {was:.3f} (epoch {best['epoch']}) to {now:.3f}, while it rose "
        f"from {best[_TRAINED]:.3f} to {line[_TRAINED]:.3f} in training: catastrophic overfitting"
    )


def at_chance(lines: Sequence[Line], line: Line, images: int, num_classes: int) -> str | None:
    """Nothing learned by the tenth epoch: clean accuracy within three standard errors √(p(1−p)/N) of p = 1/K.

    Small networks may never begin where they meet the whole radius from the first step: the loss stays at ln K.

    Args:
        lines: of the epochs before.
        line: of this epoch.
        images: N, that clean accuracy was measured on.
        num_classes: K.

    Example:
        >>> at_chance([], {"epoch": 10, "validation_clean_accuracy": 0.103}, 1000, 10)
        'epoch 10: clean accuracy on held-out images, 0.103, is that of guessing: begin again with a radius that grows (attack.first_eps 0, attack.grow 0.25), or with another optim.learning_rate'
    """  # noqa: E501
    looked = [each["epoch"] for each in lines if _CLEAN in each and each["epoch"] >= _BEGUN]
    if _CLEAN not in line or line["epoch"] < _BEGUN or looked:
        return None
    chance = 1 / num_classes
    if line[_CLEAN] > chance + 3 * math.sqrt(chance * (1 - chance) / images):
        return None
    return (
        f"epoch {line['epoch']}: clean accuracy on held-out images, {line[_CLEAN]:.3f}, is that of guessing: begin "
        "again with a radius that grows (attack.first_eps 0, attack.grow 0.25), or with another optim.learning_rate"
    )


def misleading_teacher(epoch: int, epochs: int, student: float, teacher: float, images: int) -> str | None:
    """A teacher that knows less than its student where it teaches, looked at once, when a quarter of the epochs is done.

    That is where it is right on fewer of the student's adversarial images than the student itself, by more than three
    standard errors √(p(1−p)/N). So it was with teachers of too small a radius, whose students lost half their robust
    accuracy to them, and never with those that did good: docs/results.md.

    Args:
        epoch: counted from 1.
        epochs: how many there will be.
        student: its share right on the adversarial training images of this epoch.
        teacher: the robust teacher's on the same images.
        images: N.

    Example:
        >>> misled(3, 10, 0.40, 0.27, 57_000)
        "epoch 3: the teacher is right on 0.270 of the adversarial images that it teaches from, the student itself on 0.400: it hands its mistakes down; take one that was trained against the student's radius, or a method that shows it clean images (rslad, ard)"
    """  # noqa: E501
    if epoch != math.ceil(_QUARTER * epochs) or teacher > student - 3 * math.sqrt(student * (1 - student) / images):
        return None
    return (
        f"epoch {epoch}: the teacher is right on {teacher:.3f} of the adversarial images that it teaches from, the "
        f"student itself on {student:.3f}: it hands its mistakes down; take one that was trained against the student's "
        "radius, or a method that shows it clean images (rslad, ard)"
    )


def out_of_patience(lines: Sequence[Line], patience: int) -> bool:
    """Whether the last so many looks at the held-out images brought no new best."""
    looks = [each[_ROBUST] for each in lines if _ROBUST in each]
    return bool(looks) and len(looks) - 1 - looks.index(max(looks)) >= patience


def warnings_of(lines: Sequence[Line], line: Line, images: int, num_classes: int) -> list[str]:
    """What is worth a warning in this epoch and was not in the one before; what to do is said with it."""
    found = []
    epoch, before = line["epoch"], lines[-1] if lines else None
    looks = [each for each in lines if _ROBUST in each]
    fell = catastrophic_overfitting(lines, line, images)
    if fell is not None and not (looks and catastrophic_overfitting(looks[:-1], looks[-1], images)):
        found.append(
            f"epoch {epoch}: {fell}; best stays as it is: stop here, or begin again with more attack.steps, a smaller "
            "attack.step_size, or optim.rollbacks"
        )
    least = min((each["train_loss"] for each in lines), default=math.inf)
    if line["train_loss"] > _LARGER * least and before is not None and before["train_loss"] <= _LARGER * least:
        found.append(
            f"epoch {epoch}: the training loss is {line['train_loss']:.3g}, {_LARGER:g} times what it has been: "
            "gradients explode; try a smaller optim.learning_rate, or optim.clip_norm"
        )
    stuck = at_chance(lines, line, images, num_classes)
    return found if stuck is None else [*found, stuck]
