"""A sheet has the numbers of the records and of corrupted images, resumes, and belongs to a network and its images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.small_runs import small_config
from robustill.core.errors import DataError, RobustillError
from robustill.data.corruptions import CORRUPTIONS, corrupt
from robustill.evaluation import sheet as module
from robustill.evaluation.corruptions import corrupted_accuracy
from robustill.evaluation.sheet import default_threats, measure_sheet
from robustill.evaluation.targets import open_target
from robustill.report.sheet import sheet_lines, write_sheet
from robustill.threat import Threat
from robustill.training.loop import train

SETTINGS: dict[str, Any] = {"suite": "pgd-20", "first": 20, "progress": False, "eps_curve": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sheet") / "run"
    train(small_config(), path, progress=False)
    return path


@pytest.fixture(scope="module")
def measured(run: Path) -> dict[str, Any]:
    return measure_sheet(run, out=run.parent / "sheet.json", **SETTINGS)


def test_the_file_has_every_number(run: Path, measured: dict[str, Any]) -> None:
    assert json.loads((run.parent / "sheet.json").read_text()) == measured
    assert measured["complete"]
    assert list(measured["corruptions"]) == list(CORRUPTIONS)
    assert [each["threat"] for each in measured["threats"]] == ["linf:0.1", "l2:0.23", "l1:0.8"]
    summary = json.loads((Path(measured["threats"][0]["records"]) / "summary.json").read_text())
    assert measured["threats"][0]["robust_accuracy"] == summary["results"]["robust_accuracy"]
    assert any(line.startswith("AutoAttack: the suite was pgd-20") for line in measured["not_tried"])


def test_corrupted_images_are_those_that_were_attacked(run: Path, measured: dict[str, Any]) -> None:
    target = open_target(run)
    dataset = module.load_split(target.config, "test")
    ids = torch.arange(20)
    x = corrupt(dataset.read(ids).float() / 255, "contrast", 3, ids=range(20))
    with torch.no_grad():
        right = (target.network.module(x).argmax(1) == dataset.labels[ids]).float().mean()
    assert measured["corruptions"]["contrast"][2] == pytest.approx(float(right))


def test_a_stopped_sheet_resumes(run: Path, measured: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    out = run.parent / "stopped.json"
    kinds: list[str] = []

    def stop_after_four(*arguments: Any, **settings: Any) -> list[float]:
        if len(kinds) == 4:
            raise KeyboardInterrupt
        kinds.append(arguments[3])
        return corrupted_accuracy(*arguments, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(module, "corrupted_accuracy", stop_after_four)
        with pytest.raises(KeyboardInterrupt):
            measure_sheet(run, out=out, **SETTINGS)
    assert list(json.loads(out.read_text())["corruptions"]) == kinds
    again: list[str] = []
    monkeypatch.setattr(module, "corrupted_accuracy", lambda *a, **k: again.append(a[3]) or corrupted_accuracy(*a, **k))
    assert measure_sheet(run, out=out, **SETTINGS) == measured
    assert again == list(CORRUPTIONS)[4:]


def test_the_calibration_under_attack_is_that_of_the_fixed_attack_if_it_was_run(measured: dict[str, Any]) -> None:
    calibration = measured["calibration"]
    assert sheet_lines(measured)[-1] == ("Calibration error, PGD-10", f"{calibration['ece_pgd']:.3f}", "ECE")
    old = {key: value for key, value in calibration.items() if not key.endswith("_pgd")}
    line = sheet_lines({**measured, "calibration": old})[-1]
    assert line == ("Calibration error, attacked", f"{calibration['ece_adversarial']:.3f}", "ECE")


def test_another_seed_or_network_is_measured_anew(run: Path, measured: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "sheet.json"
    stale = {**measured, "corruptions": {"fog": [0.0] * 5}, "moves": None}
    out.write_text(json.dumps({**stale, "conditions": {**measured["conditions"], "seed": 1}}, indent=1))
    assert measure_sheet(run, out=out, **SETTINGS)["corruptions"] == measured["corruptions"]
    network = {**measured["network"], "fingerprint": None}
    out.write_text(json.dumps({**stale, "network": network}, indent=1))
    assert measure_sheet(run, out=out, **SETTINGS)["corruptions"] == measured["corruptions"]


@pytest.mark.parametrize(
    ("corruptions", "moves"),
    [("none", 3), ({"fog": [0.5] * 4, "snow": "x"}, {}), ({"fog": [2.0] * 5}, {"angles": [], "shifts": []}), ([], [])],
)
def test_a_damaged_sheet_is_measured_anew(
    run: Path, measured: dict[str, Any], tmp_path: Path, corruptions: object, moves: object
) -> None:
    out = tmp_path / "sheet.json"
    out.write_text(json.dumps({**measured, "corruptions": corruptions, "moves": moves}, indent=1))
    again = measure_sheet(run, out=out, **SETTINGS)
    assert (again["corruptions"], again["moves"]) == (measured["corruptions"], measured["moves"])


def test_another_file_is_not_replaced(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "letters.json"
    other.write_text('{"to": "whom"}')
    with pytest.raises(RobustillError, match=r"letters\.json"):
        measure_sheet(run, out=other, **SETTINGS)
    assert other.read_text() == '{"to": "whom"}'


def test_official_files_of_other_images_are_refused(run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.zeros(50, dtype=np.int64))
    with pytest.raises(DataError, match="other labels"):
        measure_sheet(run, out=tmp_path / "sheet.json", official=tmp_path, **SETTINGS)


def test_official_files_are_classified(run: Path, tmp_path: Path) -> None:
    target = open_target(run)
    dataset = module.load_split(target.config, "test")
    images = dataset.read(torch.arange(len(dataset))).permute(0, 2, 3, 1).numpy()
    np.save(tmp_path / "labels.npy", np.tile(dataset.labels.numpy(), 5))
    np.save(tmp_path / "fog.npy", np.concatenate([images, *[255 - images] * 4]))
    network = target.network.module
    accuracies = corrupted_accuracy(network, dataset, torch.arange(50), "fog", official=tmp_path)
    with torch.no_grad():
        clean = (network(dataset.read(torch.arange(50)).float() / 255).argmax(1) == dataset.labels[:50]).float().mean()
    assert accuracies[0] == pytest.approx(float(clean))
    assert len(set(accuracies[1:])) == 1


@pytest.mark.parametrize(
    ("trained", "shape", "expected"),
    [
        ("linf:8/255", (3, 32, 32), ["linf:8/255", "l2:0.5", "l1:12"]),
        ("l2:0.5", (3, 32, 32), ["l2:0.5", "linf:8/255", "l1:12"]),
        ("linf:4/255", (3, 224, 224), ["linf:4/255", "l2:1.8", "l1:290"]),
    ],
)
def test_the_radii_of_other_norms_are_those_of_the_field(
    trained: str, shape: tuple[int, int, int], expected: list[str]
) -> None:
    assert [str(each) for each in default_threats(Threat.parse(trained), shape)] == expected


def test_the_page_names_conditions_and_what_was_not_tried(measured: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "sheet.html"
    hostile = {**measured, "network": {**measured["network"], "name": "<script>alert(1)</script>"}}
    write_sheet(hostile, page)
    text = page.read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "jpeg compression" in text
    assert "Not tried" in text
    assert "pgd-20" in text
    first = page.read_bytes()
    write_sheet(hostile, page)
    assert page.read_bytes() == first
    page.write_text("a letter")
    with pytest.raises(RobustillError, match=r"sheet\.html"):
        write_sheet(measured, page)
