"""Images to calibrate on: of the validation part, none of them also compared on, the same in each call."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.small_runs import small_config
from robustill.config.split import load_split
from robustill.core.errors import ConfigError
from robustill.evaluation.held_out import held_out_images
from robustill.training.loop import train


def rows(images: torch.Tensor) -> set[bytes]:
    return {each.numpy().tobytes() for each in images}


def test_they_are_two_parts_of_the_validation_images(tmp_path: Path) -> None:
    config = small_config(model={"width": 4}, data={"train_size": 400, "validation": 100}, method={"name": "clean"})
    train(config, tmp_path / "run", progress=False)
    found, again = held_out_images(f"run:{tmp_path / 'run'}@last"), held_out_images(f"run:{tmp_path / 'run'}")
    assert torch.equal(found.calibration, again.calibration)
    validation = load_split(config, "validation")
    everything = validation.read(torch.arange(len(validation))).float() / 255
    assert (len(found.calibration), len(found.x), len(found.y)) == (50, 50, 50)
    assert rows(found.calibration) | rows(found.x) == rows(everything)
    assert not rows(found.calibration) & rows(found.x)
    labels = {each.numpy().tobytes(): int(label) for each, label in zip(everything, validation.labels, strict=True)}
    assert [labels[each.numpy().tobytes()] for each in found.x] == found.y.tolist()
    assert found.source == "held-out training images of digits, seed 0"
    with pytest.raises(ConfigError, match=r"these are not the validation images of .*run, which may"):
        held_out_images(f"run:{tmp_path / 'run'}", {"validation": 200})


def test_a_network_without_a_run_takes_the_data_that_is_named() -> None:
    found = held_out_images("hf:somewhere", {"name": "digits", "validation": 40})
    assert (len(found.calibration), len(found.x)) == (20, 20)
    with pytest.raises(ConfigError, match=r"hf:somewhere does not say on which images .*: give --data NAME"):
        held_out_images("hf:somewhere")
    with pytest.raises(ConfigError, match="12 held-out images are too few to calibrate an int8 model of 10 classes"):
        held_out_images("hf:somewhere", {"name": "digits", "validation": 12})
