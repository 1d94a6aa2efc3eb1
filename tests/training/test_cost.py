"""What a run will cost is counted as by hand, and measured."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

import pytest
import torch

from helpers.small_runs import small_config, tree
from robustill.core.errors import RobustillError
from robustill.core.signals import Interrupted, interruptible
from robustill.models import build
from robustill.training import cost as forecast_module
from robustill.training.cost import Passes, forecast
from robustill.training.loop import train


def test_passes_and_operations_are_those_counted_by_hand() -> None:
    found = forecast(small_config(attack={"steps": 3}, validation={"every": 2}), seconds=0.1)
    assert found.step == Passes(student_forward=4, student_backward=4, teacher_forward=0, teacher_backward=0)
    assert (found.images, found.held_out, found.epochs) == (40, 30, 2)
    # Two operations for each weight of a convolution at each of its places.
    model, places = build("resnet8", num_classes=10, in_channels=1, image_size=8, width=2), []
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(
                lambda own, _, out: places.append(2 * own.weight.numel() * (out[0, 0].numel() if out.ndim == 4 else 1))
            )
    model(torch.zeros(1, 1, 8, 8))
    assert found.student_gflops == pytest.approx(sum(places) / 1e9)
    # Three steps of two passes, and one forward and backward, which also asks for the weights' gradient.
    assert found.step_gflops == pytest.approx(found.student_gflops * (3 * 2 + 3))
    assert found.training_seconds == 2 * found.epoch_seconds
    assert found.epoch_seconds > 40 / found.images_per_second
    assert found.stand_ins == ()


def test_memory_is_what_one_pass_keeps_and_grows_with_the_images() -> None:
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


def test_a_signal_ends_it_wherever_its_code_is() -> None:
    def ended_in(place: str | None) -> set[str]:
        seen: set[str] = set()

        def watch(frame: FrameType, event: str, _: object) -> None:
            name = frame.f_code.co_name
            if event == "call" and frame.f_code.co_filename == forecast_module.__file__ and name not in seen:
                seen.add(name)
                if name == place:
                    signal.raise_signal(signal.SIGTERM)

        sys.setprofile(watch)
        try:
            forecast(small_config(), seconds=0.1)
        finally:
            sys.setprofile(None)
        return seen

    places = ended_in(None)
    assert {"_probe", "watched", "keep"} <= places
    for place in places:
        with pytest.raises(Interrupted), interruptible():
            ended_in(place)


def test_a_teacher_that_is_not_there_is_counted_as_the_student_and_one_that_is_as_itself(tmp_path: Path) -> None:
    akd = {"method": {"name": "akd"}, "teachers": [f"run:{tmp_path / 'teacher'}@best"] * 2}
    found = forecast(small_config(**akd), seconds=0.1)
    assert found.stand_ins == (f"run:{tmp_path / 'teacher'}@best",) * 2
    assert found.teacher_gflops == pytest.approx(2 * found.student_gflops)
    train(small_config(model={"width": 4}), tmp_path / "teacher", progress=False)
    before = tree(tmp_path)
    found = forecast(small_config(**akd), seconds=0.1)
    assert found.stand_ins == ()
    assert found.teacher_gflops > 4 * found.student_gflops
    assert tree(tmp_path) == before


def test_what_is_wrong_with_the_run_itself_is_said(tmp_path: Path) -> None:
    wrong = {"method": {"name": "akd"}, "teachers": ["run:nowhere@best"], "data": {"train_size": 9000}}
    with pytest.raises(RobustillError, match="train_size is 9000"):
        forecast(small_config(**wrong))
