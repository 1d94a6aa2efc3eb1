"""What can go wrong in the numbers of a training, found in its metrics: one line each, which says what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from robustill.core.chance import GUESSING, is_near_chance

_CLEAN = "validation_clean_accuracy"
_ROBUST = "validation_robust_accuracy"
_TRAINING = "train_adversarial_accuracy"
# The robust accuracy of a sound training varies by a few points; catastrophic overfitting takes nearly all of it.
_COLLAPSED_SHARE, _COLLAPSED_POINTS = 0.5, 0.1
_EXPLODED_FACTOR = 10.0
# A training that succeeds is better than chance long before this epoch.
_CHANCE_EPOCH = 10
# Earlier the student itself knows little; later it may have memorised its images.
_TEACHER_SHARE = 0.25
NOT_FINITE_ADVICE = "try a smaller optim.learning_rate, optim.clip_norm or optim.rollbacks"

Line = Mapping[str, Any]
"""The metrics of one epoch."""


def describe_not_finite(loss: float, weights_finite: bool) -> str | None:
    """Return what is not finite in an epoch; None if everything is.

    Args:
        loss: the sum over the epoch.
        weights_finite: whether all weights are; the last step may have had a finite loss but an infinite gradient.
    """
    if not math.isfinite(loss):
        return f"a loss of {loss}"
    if not weights_finite:
        return "weights that are not finite"
    return None


def catastrophic_overfitting(lines: Sequence[Line], line: Line, images: int) -> str | None:
    """Detect catastrophic overfitting: robust accuracy of at most half its best while training accuracy is not lower.

    A fall of less than three standard errors √(p(1−p)/N) of the best, or of less than ten points, does not count.

    Args:
        lines: the metrics of the epochs before.
        line: the metrics of this epoch.
        images: N, the number of validation images.

    Returns:
        What happened, in one line; None if it did not.

    Example:
        >>> before = {"epoch": 1, "validation_robust_accuracy": 0.4, "train_adversarial_accuracy": 0.5}
        >>> now = {"epoch": 2, "validation_robust_accuracy": 0.02, "train_adversarial_accuracy": 0.8}
        >>> catastrophic_overfitting([before], now, 1000)
        'robust accuracy on validation images fell from 0.400 (epoch 1) to 0.020, while in training it rose from 0.500 to 0.800: catastrophic overfitting'
    """  # noqa: E501
    validated = [each for each in lines if _ROBUST in each]
    if not validated or _ROBUST not in line:
        return None
    best = max(validated, key=lambda each: each[_ROBUST])
    before, now = best[_ROBUST], line[_ROBUST]
    if not has_collapsed(before, now, images) or line[_TRAINING] < best[_TRAINING]:
        return None
    return (
        f"robust accuracy on validation images fell from {before:.3f} (epoch {best['epoch']}) to {now:.3f}, while in "
        f"training it rose from {best[_TRAINING]:.3f} to {line[_TRAINING]:.3f}: catastrophic overfitting"
    )


def has_collapsed(before: float, now: float, images: int) -> bool:
    """Return whether an accuracy is at most half of another one.

    A difference of less than three standard errors √(p(1−p)/N) of the other one, or of less than ten points, does not
    count.

    Args:
        before: p, the other accuracy in [0,1].
        now: the accuracy in [0,1].
        images: N, on which both are measured.

    Example:
        >>> has_collapsed(0.8, 0.3, 64), has_collapsed(0.8, 0.5, 64), has_collapsed(0.1, 0.0, 64)
        (True, False, False)
    """
    points = max(_COLLAPSED_POINTS, 3 * _standard_error(before, images))
    return now <= _COLLAPSED_SHARE * before and now <= before - points


def at_chance(lines: Sequence[Line], line: Line, images: int, num_classes: int) -> str | None:
    """Detect that nothing was learned by the tenth epoch: clean accuracy is that of guessing, p = 1/K.

    That is an accuracy of at most p + 3√(p(1−p)/N). A small network that meets the whole radius from the first step
    may never learn anything: its loss stays at ln K.

    Args:
        lines: the metrics of the epochs before.
        line: the metrics of this epoch.
        images: N, the number of validation images.
        num_classes: K.

    Returns:
        What to do, in one line, for the first validation from the tenth epoch on; otherwise None.

    Example:
        >>> at_chance([], {"epoch": 10, "validation_clean_accuracy": 0.103}, 1000, 10)
        'epoch 10: clean accuracy on validation images, 0.103, is that of guessing: start again with a radius that grows (attack.first_eps 0, attack.grow 0.25), or with another optim.learning_rate'
    """  # noqa: E501
    earlier = [each for each in lines if _CLEAN in each and each["epoch"] >= _CHANCE_EPOCH]
    if _CLEAN not in line or line["epoch"] < _CHANCE_EPOCH or earlier:
        return None
    chance = 1 / num_classes
    if line[_CLEAN] > chance + 3 * _standard_error(chance, images):
        return None
    return (
        f"epoch {line['epoch']}: clean accuracy on validation images, {line[_CLEAN]:.3f}, is that of guessing: start "
        "again with a radius that grows (attack.first_eps 0, attack.grow 0.25), or with another optim.learning_rate"
    )


def guessing_student(lines: Sequence[Line], best: int, images: int, num_classes: int) -> str | None:
    """Detect that the best epoch of a finished training is hardly better than guessing.

    Args:
        lines: the metrics of all epochs.
        best: the best epoch.
        images: the number of validation images.
        num_classes: K.

    Returns:
        What to do, in one line; None for a student that learned something.

    Example:
        >>> guessing_student([{"epoch": 1, "validation_clean_accuracy": 0.1}], 1, 1000, 10)
        'the best epoch, 1, is no better than guessing among 10 classes: right on 0.100 of 1000 clean validation images; train longer, or with another optim.learning_rate or a radius that grows (attack.first_eps 0)'
    """  # noqa: E501
    for line in lines:
        accuracy = line.get(_CLEAN)
        if line["epoch"] == best and accuracy is not None:
            if not is_near_chance(round(accuracy * images), images, num_classes):
                return None
            return (
                f"the best epoch, {best}, is {GUESSING} among {num_classes} classes: right on {accuracy:.3f} of "
                f"{images} clean validation images; train longer, or with another optim.learning_rate or a radius "
                "that grows (attack.first_eps 0)"
            )
    return None


def misleading_teacher(epoch: int, epochs: int, student: float, teacher: float, images: int) -> str | None:
    """Detect a teacher that is less accurate than its student on the images that it teaches from.

    The check is made once, when a quarter of the epochs is done: the teacher is right on fewer of the student's
    adversarial images than the student itself, by more than three standard errors √(p(1−p)/N). This was so for
    teachers of too small a radius, which cost their students half of their robust accuracy, and never for teachers
    that helped (docs/results/weak-teachers.md).

    Args:
        epoch: counted from 1.
        epochs: the number of all epochs.
        student: the student's accuracy on the adversarial training images of this epoch.
        teacher: the robust teacher's accuracy on the same images.
        images: N.

    Returns:
        What to do, in one line; None if nothing is wrong.

    Example:
        >>> misleading_teacher(3, 10, 0.40, 0.27, 57_000)
        "epoch 3: the teacher is right on 0.270 of the adversarial images that it teaches from, the student itself on 0.400, so it teaches its mistakes: use one that was trained against the student's radius, or a method that shows it clean images (rslad, ard)"
    """  # noqa: E501
    is_check_epoch = epoch == math.ceil(_TEACHER_SHARE * epochs)
    if not is_check_epoch or teacher > student - 3 * _standard_error(student, images):
        return None
    return (
        f"epoch {epoch}: the teacher is right on {teacher:.3f} of the adversarial images that it teaches from, the "
        f"student itself on {student:.3f}, so it teaches its mistakes: use one that was trained against the student's "
        "radius, or a method that shows it clean images (rslad, ard)"
    )


def out_of_patience(lines: Sequence[Line], patience: int) -> bool:
    """Return whether the last `patience` validations brought no new best robust accuracy."""
    robust = [each[_ROBUST] for each in lines if _ROBUST in each]
    if not robust:
        return False
    since_best = len(robust) - 1 - robust.index(max(robust))
    return since_best >= patience


def epoch_warnings(lines: Sequence[Line], line: Line, images: int, num_classes: int) -> list[str]:
    """Return what went wrong in this epoch and not in the one before, each in one line with what to do.

    Args:
        lines: the metrics of the epochs before.
        line: the metrics of this epoch.
        images: the number of validation images.
        num_classes: the number of classes.
    """
    warnings = [
        _overfitting_warning(lines, line, images),
        _explosion_warning(lines, line),
        at_chance(lines, line, images, num_classes),
    ]
    return [each for each in warnings if each is not None]


def _overfitting_warning(lines: Sequence[Line], line: Line, images: int) -> str | None:
    overfitting = catastrophic_overfitting(lines, line, images)
    if overfitting is None:
        return None
    validated = [each for each in lines if _ROBUST in each]
    if validated and catastrophic_overfitting(validated[:-1], validated[-1], images) is not None:
        return None
    return (
        f"epoch {line['epoch']}: {overfitting}; best stays as it is: stop here, or start again with more attack.steps, "
        "a smaller attack.step_size, attack.guard or optim.rollbacks"
    )


def _explosion_warning(lines: Sequence[Line], line: Line) -> str | None:
    if not lines:
        return None
    limit = _EXPLODED_FACTOR * min(each["train_loss"] for each in lines)
    has_exploded, had_exploded = line["train_loss"] > limit, lines[-1]["train_loss"] > limit
    if not has_exploded or had_exploded:
        return None
    return (
        f"epoch {line['epoch']}: the training loss is {line['train_loss']:.3g}, more than {_EXPLODED_FACTOR:g} times "
        "its lowest value: gradients explode; try a smaller optim.learning_rate, or optim.clip_norm"
    )


def _standard_error(share: float, images: int) -> float:
    return math.sqrt(share * (1 - share) / images)
