"""Forecasts for GPUs that are not here: operations counted by hand, at a share of a peak."""

from __future__ import annotations

from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from helpers.small_runs import small_config
from robustill.cli.study import plan
from robustill.core.errors import ConfigError
from robustill.models.loading import Shape
from robustill.training.cost import model_gflops
from robustill.training.device_profiles import DEVICE_PROFILES, forecast_on

BF16 = {"device": "cpu", "threads": 1, "precision": "bf16"}
# ResNet-8 of width 2 on 1×8×8, two operations a multiply-add: the stem, three blocks with shortcuts, the last layer.
STEM, BLOCKS = 9 * 2 * 64, 2 * 9 * 4 * 64 + (9 * 8 + 9 * 16 + 8) * 16 + (9 * 32 + 9 * 64 + 32) * 4
OPERATIONS = 2 * (STEM + BLOCKS + 8 * 10)


def test_the_training_is_counted_by_hand() -> None:
    found = forecast_on(small_config(compute=BF16, optim={"epochs": 3}), "a100")
    assert found.student_gflops == pytest.approx(OPERATIONS / 1e9)
    # One attack step: 2 forward, 1 back to the images, 1 back to the weights, which counts twice.
    assert found.step_gflops == pytest.approx(5 * OPERATIONS / 1e9)
    # 40 images, and twice a look and a step of PGD on 30 held-out images.
    assert found.total_gflops == pytest.approx(3 * (40 * 5 + 30 * 4) * OPERATIONS / 1e9)
    profile = DEVICE_PROFILES["a100"]
    assert found.seconds() == pytest.approx(found.total_gflops * 1e9 / (profile.peak_tflops * 1e12 * profile.share))
    assert found.seconds(profile.share / 2) == pytest.approx(2 * found.seconds())


def test_the_published_rates_are_those_shares_of_the_peaks() -> None:
    for name, rate in (("a100", 2470), ("v100", 1156)):
        profile = DEVICE_PROFILES[name]
        assert rate * 3 * 8.2e9 / (profile.peak_tflops * 1e12) == pytest.approx(profile.share, abs=0.006)


def test_a_teacher_of_the_zoo_is_counted_without_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTILL_CACHE", str(tmp_path))
    digits, cifar = (Shape(num_classes=10, in_channels=C, image_size=(H, H)) for C, H in ((1, 8), (3, 32)))
    teachers = [{"spec": "robustbench:Wang2023Better_WRN-28-10"}, {"spec": f"run:{tmp_path / 'none'}@best"}]
    found = forecast_on(small_config(compute=BF16, method={"name": "akd"}, teachers=teachers), "h200")
    wide = model_gflops("wideresnet_silu", {"depth": 28, "width": 10}, digits)
    assert found.teacher_gflops == pytest.approx(wide + found.student_gflops)
    assert found.stand_ins == (f"run:{tmp_path / 'none'}@best",)
    # 5.2·10⁹ multiply-adds are published for WRN-28-10 on CIFAR-10 (Zagoruyko and Komodakis 2016).
    assert model_gflops("wideresnet_silu", {"depth": 28, "width": 10}, cifar) == pytest.approx(10.4, rel=0.02)


def test_other_profiles_and_precisions_are_refused() -> None:
    with pytest.raises(ConfigError, match="device profile 'a10' is unknown: did you mean a100"):
        forecast_on(small_config(compute=BF16), "a10")
    with pytest.raises(ConfigError, match=r"compute.precision is fp32, .*: add --compute.precision bf16"):
        forecast_on(small_config(), "a100")


def test_the_names_of_the_command_line_are_those_of_the_profiles() -> None:
    literal = get_args(get_type_hints(plan)["device_profile"])[0]
    assert list(get_args(literal)) == list(DEVICE_PROFILES)
