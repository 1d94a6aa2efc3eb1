"""The temperature of an export: fitted on validation images alone, recorded or computed, and stated with its effect."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from helpers.small_runs import small_config
from robustill.analysis.calibration import ece
from robustill.config.split import load_split
from robustill.core.errors import ConfigError, DataError, ModelError
from robustill.evaluation import temperature
from robustill.evaluation.targets import evaluate_run
from robustill.evaluation.temperature import fit_calibration
from robustill.models.loading import load_network
from robustill.runs.records import Records
from robustill.training.loop import train

# It learns, so that its confidence means something.
CONFIG = small_config(
    data={"train_size": 300, "validation": 60}, model={"width": 8}, threat={"eps": 0.02}, optim={"epochs": 6}
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    train(CONFIG, run, progress=False)
    evaluate_run(run, checkpoints=["last"], suite="pgd-20", num_images=40, progress=False)
    return run


def logits_of_validation(run: Path) -> tuple[torch.Tensor, torch.Tensor]:
    images = load_split(CONFIG, "validation")
    with torch.no_grad():
        return load_network(f"run:{run}@last").module(images.images.float() / 255), images.labels


def softmax(logits: torch.Tensor, t: float) -> np.ndarray:
    return (logits.double() / t).softmax(dim=1).numpy()


def test_the_temperature_minimises_the_loss_of_the_validation_images(run: Path) -> None:
    found = fit_calibration(f"run:{run}@last")
    logits, labels = logits_of_validation(run)
    loss = {t: float(cross_entropy(logits.double() / t, labels)) for t in np.geomspace(0.02, 50, 2000)}
    assert found.temperature == pytest.approx(min(loss, key=lambda t: loss[t]), rel=0.01)
    assert found.images == "60 clean validation images"
    assert found.ece[0] == pytest.approx(ece(softmax(logits, 1), labels.numpy()), abs=1e-4)
    assert found.ece[1] == pytest.approx(ece(softmax(logits, found.temperature), labels.numpy()), abs=1e-3)
    # The evaluation of the test images is restated, and not fitted to.
    (folder,) = (run / "evaluations").iterdir()
    records = Records.load(folder)
    assert found.evaluations.keys() == {folder.name}
    for kind in ("adversarial", "pgd"):
        rescaled = torch.from_numpy(getattr(records, f"{kind}_probabilities")).double().log() / found.temperature
        assert found.evaluations[folder.name][f"ece_{kind}"] == pytest.approx(
            ece(rescaled.softmax(dim=1).numpy(), records.label), abs=1e-3
        )


def test_a_recorded_evaluation_of_the_validation_images_is_used(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(run, tmp_path / "run")
    computed = fit_calibration(f"run:{run}@last")
    evaluate_run(run, checkpoints=["last"], suite="pgd-20", split="validation", eps_curve=False, progress=False)
    monkeypatch.setattr(temperature, "_probabilities", lambda *_: pytest.fail("computed although it is recorded"))
    recorded = fit_calibration(f"run:{run}@last")
    assert recorded.temperature == pytest.approx(computed.temperature, rel=1e-4)
    assert recorded.ece == pytest.approx(computed.ece, abs=1e-4)
    # That of other weights is not.
    with pytest.raises(pytest.fail.Exception, match="computed although"):
        fit_calibration(f"run:{run}@epoch-5")


def test_why_a_network_cannot_be_calibrated_is_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="is not a run, which alone has validation images"):
        fit_calibration("hf:somewhere")
    labels = np.arange(60) % 10
    perfect = np.eye(10)[labels] * 0.5 + 0.05
    for probabilities, reason in (
        (perfect, "because every prediction is right"),
        (np.roll(perfect, 1, axis=1), "because their confidence says nothing about their labels"),
    ):
        monkeypatch.setattr(temperature, "_probabilities", lambda *_, found=probabilities: (found, labels))
        with pytest.raises(ModelError, match=f"on its 60 validation images, {reason}: hold out more"):
            fit_calibration(f"run:{run}@last")


def test_a_temperature_that_does_not_help_is_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nine right at confidence 0.9 and one wrong at 0.9 are calibrated; a wrong one at 0.999 raises the temperature.
    confidence = np.array([0.9] * 10 + [0.999])
    probabilities, labels = np.stack([confidence, 1 - confidence], axis=1), np.array([0] * 9 + [1, 1])
    monkeypatch.setattr(temperature, "_probabilities", lambda *_: (probabilities, labels))
    with pytest.warns(
        UserWarning, match=r"lowers the loss of the 11 validation images, but raises their ECE from 0\.0"
    ):
        found = fit_calibration(f"run:{run}@last")
    assert found.temperature > 1
    assert found.ece[0] < found.ece[1]


@pytest.mark.filterwarnings("ignore:.*no better than guessing")
def test_missing_data_says_how_to_calibrate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = np.random.default_rng(0)
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", images=draws.random((80, 8, 8)), labels=np.arange(80) % 10)
    data = {"name": "npz", "root": str(tmp_path), "validation": 30, "train_size": None}
    train(small_config(data=data), tmp_path / "run", progress=False)
    (tmp_path / "train.npz").unlink()
    with pytest.raises(DataError, match=r"not found: .*, or first evaluate .*--split validation --data\.root DIR$"):
        fit_calibration(f"run:{tmp_path / 'run'}@last")


def test_a_bar_is_shown_when_it_takes_long(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit_calibration(f"run:{run}@last", progress=True)
    assert capsys.readouterr().err == ""
    seconds = iter(range(0, 1000, 5))
    monkeypatch.setattr("robustill.core.progress.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    fit_calibration(f"run:{run}@last", progress=True)
    assert capsys.readouterr().err.startswith("calibrating 100% · ")
