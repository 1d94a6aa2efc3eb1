"""The base class of methods: an inner objective for the adversary and an outer objective for the student.

`Batch` is the input of both and `Outcome` the result of the outer one. Helpers for subclasses follow `Method`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustill.attacks.pgd import LossFn, Start
from robustill.core.errors import ConfigError, DataError
from robustill.core.validation import (
    check_images,
    check_integer,
    check_labels,
    check_number,
    check_tensor,
    check_type,
    describe,
)
from robustill.losses import ce

Network = Callable[[Tensor], Tensor]
"""Images [B,C,H,W] in [0,1] to logits [B,K]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """A batch of the training set.

    Args:
        x: clean images, [B,C,H,W] in [0,1].
        y: labels, int64 [B].
        index: each sample's id in the data set, int64 [B]; the ids of extra images follow those of the data set.
        epoch: the epoch, counted from 0.
        epochs: the number of epochs of the training.
        rate_factor: the learning rate of the step as a share of the training's largest one, in [0,1].
        mixed: probabilities, float32 [B,K], where images show more than one class; `y` is then the most probable class.
        smoothing: share of the label that is spread evenly over the K classes, in [0,1).

    Raises:
        DataError: images, labels, ids or probabilities of another type, shape or dtype; values are not looked at.
        ConfigError: another epoch, number of epochs, smoothing or rate factor.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    epoch: int = 0
    epochs: int = 1
    mixed: Tensor | None = None
    smoothing: float = 0.0
    rate_factor: float = 1.0

    def __post_init__(self) -> None:
        # Images may be none: of several processes that share a small batch, one may have no part of it.
        check_images(self.x, allow_empty=True)
        check_labels(self.y, len(self.x))
        check_labels(self.index, len(self.x), "index")
        check_integer("epoch", self.epoch, at_least=0)
        check_integer("epochs", self.epochs, at_least=1)
        check_number("smoothing", self.smoothing, at_least=0, below=1)
        check_number("rate_factor", self.rate_factor, at_least=0, at_most=1)
        if self.mixed is not None:
            check_tensor("mixed", self.mixed, f"probabilities [{len(self.x)},K]")
            if self.mixed.ndim != 2 or len(self.mixed) != len(self.x) or not self.mixed.is_floating_point():
                raise DataError(f"mixed is {describe(self.mixed)}, expected probabilities [{len(self.x)},K]")

    @property
    def label(self) -> Tensor:
        """The label without smoothing, as the adversary uses it: int64 [B], or probabilities [B,K] if it is mixed."""
        return self.y if self.mixed is None else self.mixed

    def target(self, num_classes: int) -> Tensor:
        """Return the label for the student's loss: `label`, smoothed to (1−s)·label + s/K.

        Returns:
            int64 [B] where the label is neither mixed nor smoothed, else probabilities, float32 [B,K].

        Example:
            >>> x = torch.zeros(1, 1, 1, 1)
            >>> Batch(x=x, y=torch.tensor([0]), index=torch.tensor([0]), smoothing=0.5).target(2)
            tensor([[0.7500, 0.2500]])
        """
        if self.smoothing == 0:
            return self.label
        label = F.one_hot(self.y, num_classes) if self.mixed is None else self.mixed
        return (1 - self.smoothing) * label + self.smoothing / num_classes

    def after(self, share: float) -> bool:
        """Return whether this share of the epochs has passed.

        Example:
            >>> x, y = torch.zeros(1, 1, 1, 1), torch.tensor([0])
            >>> Batch(x=x, y=y, index=y, epoch=60, epochs=200).after(0.3)
            True
        """
        # Rounded because 0.07 · 100 is a little more than 7 in floating point.
        return self.epoch >= round(share * self.epochs, 9)

    def part(self, rows: slice) -> Batch:
        """Return a part of this batch."""
        mixed = None if self.mixed is None else self.mixed[rows]
        return replace(self, x=self.x[rows], y=self.y[rows], index=self.index[rows], mixed=mixed)

    def split(self, count: int) -> list[Batch]:
        """Split this batch into at most `count` parts of nearly equal size, in order; one part is the batch itself."""
        if count == 1:
            return [self]
        sizes = [len(labels) for labels in self.y.tensor_split(min(count, len(self.y)))]
        edges = [0, *accumulate(sizes)]
        return [self.part(slice(start, stop)) for start, stop in pairwise(edges)]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outer objective of a batch, per sample; only the training loop averages.

    Args:
        loss: what the student minimises, [B].
        logits: the student's logits at the adversarial images, or at the clean images where the method trains on
            those, [B,K].
        terms: the named parts of the loss before weighting, each [B].
        clean_logits: the student's logits at the clean images, [B,K], where the method computes them in addition to
            `logits`; they are recorded, which saves the recorder a forward pass.

    Raises:
        DataError: a loss or logits that are no tensors.
    """

    loss: Tensor
    logits: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    clean_logits: Tensor | None = None

    def __post_init__(self) -> None:
        check_tensor("loss", self.loss, "one value a sample, [B]")
        check_tensor("logits", self.logits, "[B,K]")
        for name, term in self.terms.items():
            check_tensor(f"term {name}", term, "one value a sample, [B]")
        if self.clean_logits is not None:
            check_tensor("clean_logits", self.clean_logits, "[B,K]")


SELF = "self"
"""The role of the average of the student's own weights."""


class Method(nn.Module):
    """A training objective. It is a Module, so that its state across steps is part of the checkpoint.

    A subclass takes keyword arguments only. It overrides `outer` and, where the adversary maximises something other
    than the cross-entropy, `inner`. `outer` must not change the state of the method, because it may be evaluated more
    than once on the same batch; `update` changes it. A buffer that is registered empty takes the shape of the tensor
    that is loaded into it, also after it was filled.

    Attributes:
        roles: the names of its teachers. With none, `teacher` is never called; with one, it is called like a network;
            with several, it is indexed by role. The role "self" is the training's own average of the student's weights
            (`optim.ema`), as it was after the last step; the training supplies it.
        start: where the attack starts.
        reference: the paper, for lists.
        single_label: every image must show one class, so labels must not be mixed.
        whole_batch: a sample's loss depends on the other samples of its batch, or the state depends on means over the
            batch, so a batch must not be split.
    """

    roles: tuple[str, ...] = ()
    start: Start = "uniform"
    reference: ClassVar[str] = ""
    single_label: ClassVar[bool] = False
    whole_batch: bool = False

    def __init__(self) -> None:
        super().__init__()
        self._registered_empty: set[str] = set()

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """See `nn.Module`; an empty buffer may take another shape when a state is loaded."""
        super().register_buffer(name, tensor, persistent)
        if tensor is not None and tensor.numel() == 0:
            self._registered_empty.add(name)

    def inner(self, batch: Batch, student: Network, teacher: nn.Module) -> LossFn | None:
        """Return what the adversary maximises, by default CE(S(x'), y), y not smoothed; None trains on clean images."""
        return lambda x_adv: ce(student(x_adv), batch.label)

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Return what the student minimises, per sample."""
        raise NotImplementedError

    def set_up(self, network: Callable[..., nn.Module]) -> None:
        """Build the networks that are trained as part of the method, as submodules; called once, before training.

        Args:
            network: called with (name=None, **options), it returns a newly initialised network for the run's images
                and classes; the name None stands for the student's architecture.
        """

    def update(self, batch: Batch, outcome: Outcome) -> None:
        """Update the state of the method with the outcome of a training step; called once a step, after `outer`."""

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        for name, buffer in self.named_buffers(recurse=False):
            stored = state_dict.get(prefix + name)
            if name in self._registered_empty and stored is not None and stored.shape != buffer.shape:
                setattr(self, name, torch.empty_like(stored, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


def check_method(method: Method) -> None:
    """Check that a method is one, and was initialised.

    Raises:
        ConfigError: it is another object, or its class does not call super().__init__().
    """
    check_type("method", method, Method, "a robustill.Method, such as robustill.build_method('akd')")
    if "_modules" not in vars(method):
        raise ConfigError(f"method {type(method).__name__} is not initialised: call super().__init__() in __init__")


def forward_pair(student: Network, x: Tensor, x_adv: Tensor, *, joint: bool) -> tuple[Tensor, Tensor]:
    """Compute the logits at x and at x', in two forward passes or in one.

    In train mode the two differ where the network has BatchNorm: a joint pass normalises both with the statistics of
    their union, and updates the running statistics once instead of twice.

    Returns:
        S(x) and S(x'), each [B,K].
    """
    if not joint:
        return student(x), student(x_adv)
    clean, adversarial = student(torch.cat([x, x_adv])).chunk(2)
    return clean, adversarial


def teacher_of(teachers: nn.Module, role: str) -> nn.Module:
    """Return the teacher with this role, for a method with several teachers."""
    assert isinstance(teachers, nn.ModuleDict)
    return teachers[role]


def remaining(share: float) -> float:
    """Return the largest second share beside a first one, 1 − share; rounding must not refuse 0.2 beside 0.8."""
    return max(1 - share, round(1 - share, 9))


def in_range(name: str, value: float, low: float, high: float = float("inf")) -> float:
    """Return the value if it lies in [low, high].

    Raises:
        ConfigError: it is not a number in that range.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not low <= value <= high:
        upper = f" and at most {high:g}" if high < float("inf") else ""
        raise ConfigError(f"{name} is {value!r}, expected a number of at least {low:g}{upper}")
    return float(value)
