"""The cost of a run: passes and operations are those counted by hand, time and memory are measured."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

import pytest
import torch
from torch import Tensor, nn

from helpers.small_runs import small_config, tree
from robustill.core.errors import RobustillError
from robustill.core.signals import Interrupted, interruptible
from robustill.methods import Batch, Method, Network, Outcome, build_method
from robustill.models import build
from robustill.training import cost as cost_module
from robustill.training.cost import (
    Passes,
    count_passes,
    forecast,
    guard_passes,
    passes_per_image,
    training_gflops,
    validation_passes,
)
from robustill.training.loop import train


class RepeatedTeacher(Method):
    """A method that calls its teacher several times on the same images."""

    roles = ("robust",)

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        for _ in range(3):
            assert not teacher(batch.x).requires_grad
            assert torch.equal(teacher(x_adv), teacher(x_adv))
        teacher(2 * batch.x - x_adv)
        logits = student(x_adv)
        return Outcome(loss=logits.square().sum(dim=1), logits=logits)


def test_a_teacher_computes_on_the_same_images_once() -> None:
    counted = count_passes(RepeatedTeacher(), steps=4)
    assert (counted.teacher_forward, counted.teacher_backward) == (3, 0)


def test_counting_changes_neither_method_nor_random_state() -> None:
    method = build_method("mtard")
    before, state = torch.get_rng_state(), {key: value.clone() for key, value in method.state_dict().items()}
    count_passes(method, steps=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[key]) or value.isnan().all() for key, value in method.state_dict().items())


def test_passes_and_operations_are_those_counted_by_hand() -> None:
    result = forecast(small_config(attack={"steps": 3}, validation={"every": 2}), seconds=0.1)
    assert result.step == Passes(student_forward=4, student_backward=4, teacher_forward=0, teacher_backward=0)
    assert (result.images, result.validation_images, result.epochs) == (40, 30, 2)
    # Two operations for each weight of a convolution at each of its places.
    model, places = build("resnet8", num_classes=10, in_channels=1, image_size=8, width=2), []
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(
                lambda own, _, out: places.append(2 * own.weight.numel() * (out[0, 0].numel() if out.ndim == 4 else 1))
            )
    model(torch.zeros(1, 1, 8, 8))
    assert result.student_gflops == pytest.approx(sum(places) / 1e9)
    # Three steps of two passes, and one forward and backward, which also asks for the weights' gradient.
    assert result.step_gflops == pytest.approx(result.student_gflops * (3 * 2 + 3))
    assert result.training_seconds == 2 * result.epoch_seconds
    assert result.epoch_seconds > 40 / result.images_per_second
    assert result.stand_ins == ()


def test_growing_steps_checks_and_averages_are_counted_by_hand() -> None:
    growing = small_config(
        attack={"steps": 3, "first_steps": 1, "guard": 2},
        optim={"epochs": 3, "batch_size": 8, "ema": 0.9},
        validation={"steps": 1, "every": 1},
    )
    # Epochs of one, two and three steps; 2·steps + 1 passes forward and back, the last of which counts twice.
    assert passes_per_image(growing) == (2 * 2 + 2, 0)
    # 5 batches of 8 images have 3 checks, each by PGD-3 and PGD-5 and a look after each of them.
    assert guard_passes(growing, 40) == 3 * 8 * (2 * 3 + 1 + 2 * 5 + 1)
    # The student and its average, by PGD-1 and two looks.
    assert validation_passes(growing, 30) == 2 * 30 * 4
    total = training_gflops(growing, train=40, validation=30, student=2.0, teachers=[])
    assert total == 2.0 * (40 * (5 + 7 + 9) + 3 * (3 * 8 * 18 + 2 * 30 * 4))


def test_an_epoch_takes_the_time_of_its_own_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_module, "_time_steps", lambda *_: (0.5, 0))
    monkeypatch.setattr(cost_module, "time_pass", lambda *_: 0.01)
    growing = small_config(
        attack={"steps": 3, "first_steps": 1},
        optim={"epochs": 3, "batch_size": 8, "ema": 0.9},
        validation={"steps": 1, "every": 1},
    )
    # Four, six and eight passes; a step of eight takes half a second. Two networks look at 30 images.
    steps = (4 + 6 + 8) / 3 / 8 * 5 * 0.5
    assert forecast(growing).epoch_seconds == pytest.approx(steps + 2 * 30 * 4 * 0.01)


def test_memory_is_that_of_one_pass_and_grows_with_the_batch() -> None:
    def memory(size: int) -> int:
        data = {"name": "digits", "train_size": 900, "validation": 30}
        return forecast(small_config(data=data, optim={"batch_size": size}), seconds=0.1).memory

    small, large = memory(100), memory(400)
    assert large - small == pytest.approx(3 * small, rel=0.05)
    # Of width 2 in float32, every image keeps the outputs of seven convolutions and of seven BatchNorms, at least.
    maps = 2 * 64 * 3 + 4 * 16 * 2 + 8 * 4 * 2
    assert 4 * 100 * 2 * maps < small < 4 * 100 * 6 * maps
    # Passes of the attack let go of theirs.
    longer = forecast(small_config(attack={"steps": 5}), seconds=0.1).memory
    assert longer == pytest.approx(forecast(small_config(), seconds=0.1).memory, rel=0.05)


def test_a_signal_stops_a_forecast_anywhere() -> None:
    def interrupted_in(place: str | None) -> set[str]:
        called: set[str] = set()

        def watch(frame: FrameType, event: str, _: object) -> None:
            name = frame.f_code.co_name
            if event == "call" and frame.f_code.co_filename == cost_module.__file__ and name not in called:
                called.add(name)
                if name == place:
                    signal.raise_signal(signal.SIGTERM)

        sys.setprofile(watch)
        try:
            forecast(small_config(), seconds=0.1)
        finally:
            sys.setprofile(None)
        return called

    places = interrupted_in(None)
    assert {"_time_steps", "measuring", "_pack"} <= places
    for place in places:
        with pytest.raises(Interrupted), interruptible():
            interrupted_in(place)


def test_a_missing_teacher_is_counted_as_the_student(tmp_path: Path) -> None:
    akd = {"method": {"name": "akd"}, "teachers": [f"run:{tmp_path / 'teacher'}@best"] * 2}
    result = forecast(small_config(**akd), seconds=0.1)
    assert result.stand_ins == (f"run:{tmp_path / 'teacher'}@best",) * 2
    assert result.teacher_gflops == pytest.approx(2 * result.student_gflops)
    train(small_config(model={"width": 4}), tmp_path / "teacher", progress=False)
    before = tree(tmp_path)
    result = forecast(small_config(**akd), seconds=0.1)
    assert result.stand_ins == ()
    assert result.teacher_gflops > 4 * result.student_gflops
    assert tree(tmp_path) == before


def test_an_invalid_configuration_is_refused(tmp_path: Path) -> None:
    wrong = {"method": {"name": "akd"}, "teachers": ["run:nowhere@best"], "data": {"train_size": 9000}}
    with pytest.raises(RobustillError, match="train_size is 9000"):
        forecast(small_config(**wrong))
