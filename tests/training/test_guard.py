"""The guard against catastrophic overfitting: what it counts, when it answers, and that a run goes on with it."""

from __future__ import annotations

import math
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from helpers.processes import together
from helpers.small_runs import lines, small_config, weights
from robustill.core.distributed import SINGLE_PROCESS, ProcessGroup
from robustill.core.randomness import generator
from robustill.core.signals import Interrupted
from robustill.losses import ce
from robustill.methods import AT, Batch
from robustill.threat import Threat
from robustill.training.guard import Guard
from robustill.training.loop import train
from robustill.training.step import Step

EPS = 0.1
THREAT = Threat(norm="linf", eps=EPS)


class Overfitted(nn.Module):
    """A network of one pixel that is right at x and at x + eps, where one step from x ends, but not between them."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        right = self.scale * (0.2 - torch.sin(math.pi * (x.flatten(1) - 0.5) / EPS))
        return torch.cat([right, -right], dim=1)


class Linear(nn.Module):
    """A network that one step attacks as well as any number of them."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        right = self.scale * (0.5 + 0.6 * EPS - x.flatten(1))
        return torch.cat([right, -right], dim=1)


def pixels(count: int = 100) -> Batch:
    return Batch(x=torch.full((count, 1, 1, 1), 0.5), y=torch.zeros(count).long(), index=torch.arange(count))


def step_of(student: nn.Module) -> Step:
    return Step(student, AT(), None, THREAT, steps=1, step_size=EPS, start="clean")


def pgd(student: nn.Module, batch: Batch, steps: int, draws: torch.Generator) -> Tensor:
    x = batch.x
    x_adv = x + EPS * (2 * torch.rand(x.shape, generator=draws) - 1)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_(True)
        (grad,) = torch.autograd.grad(ce(student(x_adv), batch.y).sum(), x_adv)
        x_adv = (x_adv + 2.5 * EPS / steps * grad.sign()).clamp(0.5 - EPS, 0.5 + EPS)
    return x_adv.detach()


def test_it_counts_the_first_images_under_the_trainings_attack_and_under_pgd() -> None:
    student, batch = Overfitted(), pixels()
    counts = Guard(1)._count(step_of(student), batch, generator(0, "guard"), SINGLE_PROCESS)
    right = student(pgd(student, batch.part(slice(64)), 5, generator(0, "guard"))).argmax(dim=1) == 0
    assert counts == (64, int(right.sum()), 64)
    assert counts[1] < 32


def test_it_answers_with_pgd_until_the_next_check_finds_nothing() -> None:
    student, batch, guard, group = Overfitted(), pixels(8), Guard(2), ProcessGroup()
    step, attacked = step_of(student), []
    for number in range(6):
        if number == 3:
            # Now all of the ball is classified correctly.
            student.scale.data.zero_()
        draws = generator(0, "guard", number)
        with guard.watching(number, step, batch, draws, group):
            attacked.append((step.steps, step.step_size, step.start, step.noise))
            found = step.attack(batch, generator(0, "attack"))
            if guard.is_answering:
                torch.testing.assert_close(found, pgd(student, batch, 3, generator(0, "attack")))
    answer, usual = (3, 2.5 * EPS / 3, "uniform", None), (1, EPS, "clean", None)
    assert attacked == [answer] * 4 + [usual] * 2
    assert guard.num_answered == 4
    guard.start_epoch()
    assert guard.num_answered == 0


def check_in_two_processes(rank: int, images: int, expected: tuple[int, int, int]) -> None:
    group = ProcessGroup(rank, 2)
    own = pixels(images).part(group.part(images))
    assert Guard(1)._count(step_of(Overfitted()), own, generator(0, "guard"), group) == expected


# A part of the second process is among the first 64 images, or none.
@pytest.mark.parametrize("images", [90, 130])
def test_two_processes_check_the_images_that_one_would(images: int, tmp_path: Path) -> None:
    expected = Guard(1)._count(step_of(Overfitted()), pixels(images), generator(0, "guard"), SINGLE_PROCESS)
    assert expected[2] == 64
    together(2, tmp_path, check_in_two_processes, images, expected)


def test_a_check_changes_no_running_statistics() -> None:
    student = nn.Sequential(nn.BatchNorm2d(1), Overfitted()).train()
    step = Step(student, AT(), None, THREAT, steps=1, step_size=EPS, batchnorm="train")
    with Guard(1).watching(0, step, pixels(), generator(0, "guard")):
        pass
    norm = student[0]
    assert [int(norm.num_batches_tracked), norm.running_mean.item(), norm.running_var.item()] == [0, 0, 1]
    assert norm.training


def test_it_leaves_an_attack_alone_that_is_as_strong_as_pgd() -> None:
    guard, step = Guard(1), step_of(Linear())
    with guard.watching(0, step, pixels(), generator(0, "guard")):
        assert (step.steps, step.start) == (1, "clean")
    assert not guard.is_answering


def test_an_answer_takes_the_place_of_noise_and_is_taken_back_after_an_error() -> None:
    step = Step(Overfitted(), AT(), None, THREAT, steps=1, step_size=0.0, noise=0.0)
    seen = []

    def fail() -> None:
        with Guard(1).watching(0, step, pixels(), generator(0, "guard")):
            seen.append((step.steps, step.noise))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [(3, None)]
    assert (step.steps, step.step_size, step.noise) == (1, 0.0, 0.0)


def test_a_run_stopped_within_an_epoch_goes_on_with_its_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A guard that always answers, of which a stopped epoch has only the state.
    monkeypatch.setattr("robustill.training.guard.has_collapsed", lambda *_: True)
    config = small_config(attack={"guard": 10, "steps": 1, "step_size": 0.0}, data={"train_size": 60})
    whole = train(config, tmp_path / "whole", progress=False).run
    assert [line["guarded_steps"] for line in lines(whole)] == [3, 3]
    unguarded = small_config(attack={"steps": 1, "step_size": 0.0}, data={"train_size": 60})
    assert weights(whole) != weights(train(unguarded, tmp_path / "plain", progress=False).run)
    watching = Guard.watching

    def stops(self: Guard, number: int, *rest: object) -> object:
        if number == 1:
            signal.raise_signal(signal.SIGTERM)
        return watching(self, number, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Guard, "watching", stops)
    with pytest.raises(Interrupted, match="step 2 of 3"):
        train(config, tmp_path / "run", progress=False)
    monkeypatch.setattr(Guard, "watching", watching)
    run = train(config, tmp_path / "run", progress=False).run
    assert lines(run) == lines(whole)
    assert weights(run) == weights(whole)
