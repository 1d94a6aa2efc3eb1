"""What every method is: an inner objective for the adversary and an outer one for the student."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustill.attacks.pgd import LossFn, Start
from robustill.core.errors import ConfigError
from robustill.losses import ce

Network = Callable[[Tensor], Tensor]
"""Images [B,C,H,W] in [0,1] to logits [B,K]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """One batch of the training set.

    Args:
        x: clean images, [B,C,H,W] in [0,1].
        y: labels, int64 [B].
        index: each sample's id in the data set, int64 [B]; those of extra images count on from its end.
        epoch: counted from 0.
        epochs: how many there will be.
        mixed: where images show more than one class: probabilities, float32 [B,K]; `y` is then the likeliest.
        smoothing: share of the label that is spread evenly over the K classes, in [0,1).
    """

    x: Tensor
    y: Tensor
    index: Tensor
    epoch: int = 0
    epochs: int = 1
    mixed: Tensor | None = None
    smoothing: float = 0.0

    @property
    def label(self) -> Tensor:
        """What the images show, which is what the adversary fights: int64 [B], or probabilities [B,K]."""
        return self.y if self.mixed is None else self.mixed

    def target(self, num_classes: int) -> Tensor:
        """What the student's loss takes as the label: `label`, smoothed to (1−s)·label + s/K.

        Returns:
            int64 [B] where it is neither mixed nor smoothed, else probabilities, float32 [B,K].

        Example:
            >>> x = torch.zeros(1, 1, 1, 1)
            >>> Batch(x=x, y=torch.tensor([0]), index=torch.tensor([0]), smoothing=0.5).target(2)
            tensor([[0.7500, 0.2500]])
        """
        if self.smoothing == 0:
            return self.label
        shown = F.one_hot(self.y, num_classes) if self.mixed is None else self.mixed
        return (1 - self.smoothing) * shown + self.smoothing / num_classes

    def after(self, share: float) -> bool:
        """Whether this share of the epochs lies behind.

        Example:
            >>> Batch(x=torch.zeros(0), y=torch.zeros(0), index=torch.zeros(0), epoch=60, epochs=200).after(0.3)
            True
        """
        # 0.07 · 100 is a little more than 7.
        return self.epoch >= round(share * self.epochs, 9)

    def part(self, own: slice) -> Batch:
        """Some images of this batch."""
        mixed = None if self.mixed is None else self.mixed[own]
        return replace(self, x=self.x[own], y=self.y[own], index=self.index[own], mixed=mixed)

    def split(self, count: int) -> list[Batch]:
        """This batch in at most `count` parts of nearly equal size, in order; itself for one part."""
        if count == 1:
            return [self]
        edges = [0, *accumulate(len(each) for each in self.y.tensor_split(min(count, len(self.y))))]
        return [self.part(slice(*own)) for own in pairwise(edges)]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the student minimises, per sample; only the training loop averages.

    Args:
        loss: [B].
        logits: the student's at the adversarial images (the clean ones where a method trains on those), [B,K].
        terms: the named parts of the loss before weighting, each [B].
        clean_logits: the student's at the clean images, where the method asks for them beside those, [B,K]; they are
            recorded, and spare the recorder a pass of its own.
    """

    loss: Tensor
    logits: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    clean_logits: Tensor | None = None


class Method(nn.Module):
    """A training objective; a Module, so that state across steps is in the checkpoint.

    A subclass takes keyword arguments only, and overrides `outer` and, where the adversary maximises something other
    than the cross-entropy, `inner`. `roles` names its teachers: with none, `teacher` is never called; with one, it is
    called like a network; with several, it is indexed by role.

    `single_label` says that an image must show one class, so that labels must not be mixed. `whole_batch` says that a
    sample's loss depends on the other samples of its batch, or the state on means over it, so that a batch must not be
    taken in parts.

    `outer` changes no state of the method: it may be evaluated more than once on the same batch. State changes in
    `update`. A buffer that is registered empty takes the shape of the one that is loaded into it.
    """

    roles: ClassVar[tuple[str, ...]] = ()
    start: Start = "uniform"
    reference: ClassVar[str] = ""
    single_label: ClassVar[bool] = False
    whole_batch: ClassVar[bool] = False

    def inner(self, batch: Batch, student: Network, teacher: nn.Module) -> LossFn | None:
        """What the adversary maximises; None trains on clean images. Default: CE(S(x'), y), y not smoothed."""
        return lambda x_adv: ce(student(x_adv), batch.label)

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """What the student minimises."""
        raise NotImplementedError

    def set_up(self, network: Callable[..., nn.Module]) -> None:
        """Make the networks that are trained as part of the method, as submodules; called once, before training.

        Args:
            network: (name=None, **options) to a freshly initialised network for the run's images and classes; None
                gives the student's architecture.
        """

    def update(self, batch: Batch, outcome: Outcome) -> None:
        """Take the outcome of a training step into the method's state; called once a step, after `outer`."""

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        for name, buffer in self.named_buffers(recurse=False):
            stored = state_dict.get(prefix + name)
            if buffer.numel() == 0 and stored is not None:
                setattr(self, name, torch.empty_like(stored, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


def forward_pair(student: Network, x: Tensor, x_adv: Tensor, *, joint: bool) -> tuple[Tensor, Tensor]:
    """Logits at x and at x', in two passes or in one.

    In train mode the two differ: a joint pass normalises both with the statistics of their union, and moves the running
    statistics once instead of twice.

    Returns:
        S(x) and S(x'), each [B,K].
    """
    if not joint:
        return student(x), student(x_adv)
    clean, adversarial = student(torch.cat([x, x_adv])).chunk(2)
    return clean, adversarial


def label_ce(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy with the label as the student's loss takes it, smoothed and mixed where it is, [B]."""
    return ce(logits, batch.target(logits.shape[-1]))


def mixed_target(teacher_logits: Tensor, batch: Batch, alpha: float) -> Tensor:
    """The mixture of a teacher's probabilities with the label: α·p_T + (1−α)·onehot(y).

    Args:
        teacher_logits: [B,K].
        batch: with the labels; smoothed and mixed where they are.
        alpha: weight of the teacher, in [0,1].

    Returns:
        Probabilities, float32 [B,K].

    Example:
        >>> batch = Batch(x=torch.zeros(1, 1, 1, 1), y=torch.tensor([0]), index=torch.tensor([0]))
        >>> mixed_target(torch.zeros(1, 2), batch, alpha=0.5)
        tensor([[0.7500, 0.2500]])
    """
    probabilities = teacher_logits.float().softmax(dim=-1)
    label = batch.target(probabilities.shape[-1])
    if label.ndim == 1:
        label = F.one_hot(label, probabilities.shape[-1])
    return alpha * probabilities + (1 - alpha) * label


def label_trust(teacher_logits: Tensor, y: Tensor, beta: float) -> Tensor:
    """How far a teacher is to be trusted: p_T(y)^β, or Π_k p_T(k)^(β·y_k) where the label is mixed.

    Args:
        teacher_logits: [B,K].
        y: labels, int64 [B]; or probabilities, [B,K].
        beta: β ≥ 0; 0 trusts always.

    Returns:
        [B], float32, in [0,1].

    Example:
        >>> label_trust(torch.zeros(1, 4), torch.tensor([0]), beta=0.5)
        tensor([0.5000])

    Reference: Zhu et al. 2022.
    """
    return torch.exp(-beta * ce(teacher_logits, y))


def teacher_of(teachers: nn.Module, role: str) -> nn.Module:
    """One of several teachers."""
    assert isinstance(teachers, nn.ModuleDict)
    return teachers[role]


def in_range(name: str, value: float, low: float, high: float = float("inf")) -> float:
    """The value itself if it lies in [low, high].

    Raises:
        ConfigError: it does not.
    """
    if not isinstance(value, int | float) or not low <= value <= high:
        upper = f" and at most {high:g}" if high < float("inf") else ""
        raise ConfigError(f"{name} is {value!r}, expected a number of at least {low:g}{upper}")
    return float(value)
