"""`robustill.export`: a temperature and an int8 model from the validation images of a run, in one call."""

from __future__ import annotations

from pathlib import Path

import pytest

import robustill
from helpers.small_runs import small_config
from robustill.core.errors import ConfigError, RobustillError
from robustill.models.onnx import exported_facts
from robustill.training.loop import train


def test_the_temperature_and_int8_come_from_the_validation_images(tmp_path: Path) -> None:
    data, model = {"train_size": 300, "validation": 60}, {"width": 8}
    config = small_config(data=data, model=model, threat={"eps": 0.02}, optim={"epochs": 4})
    train(config, tmp_path / "run", progress=False)
    spec = f"run:{tmp_path / 'run'}"
    network, calibration = robustill.export(spec, tmp_path / "small.onnx", calibrated=True, int8=True)
    assert network.spec == spec
    assert calibration is not None
    facts = exported_facts((tmp_path / "small.onnx").read_bytes())
    assert facts["temperature"] == calibration.temperature
    assert facts["quantisation"]["calibration"] == "30 held-out training images of digits, seed 0"
    assert facts["quantisation"]["num_compared"] == 30


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        ("hf:nowhere", {"int8": True}, "hf:nowhere does not say on which images to calibrate"),
        ("hf:nowhere", {"calibrated": True}, "hf:nowhere is not a run, which alone has validation images"),
        (3, {}, "spec is 3"),
        ("hf:nowhere", {"int8": "yes"}, "int8 is 'yes'"),
    ],
)
def test_invalid_arguments_are_one_line(tmp_path: Path, words, settings, message: str) -> None:
    with pytest.raises(RobustillError, match=message):
        robustill.export(words, tmp_path / "net.onnx", **settings)


def test_data_may_be_a_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="12 held-out images are too few"):
        robustill.export("hf:nowhere", tmp_path / "x.onnx", int8=True, data={"name": "digits", "validation": 12})
    with pytest.raises(RobustillError, match="nowhere"):
        robustill.export("hf:nowhere", tmp_path / "x.onnx", int8=True, data="digits")
