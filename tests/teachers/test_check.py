"""The report on a teacher against numbers computed by hand, and the command that prints it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.evaluation_cases import made_up, placement, untrained, viewing
from helpers.small_runs import small_config, weights
from helpers.tiny_studies import recipe
from robustill.cli import app as cli
from robustill.config.files import load_config
from robustill.core.errors import ConfigError, DataError, ModelError
from robustill.data import ImageDataset
from robustill.models.loading import LoadedNetwork, Shape
from robustill.runs.directory import RunDirectory
from robustill.teachers.check import check_spec, check_teacher
from robustill.threat import Threat
from robustill.training.loop import train

SHAPE = Shape(num_classes=2, in_channels=1, image_size=(1, 2))


class PixelComparison(nn.Module):
    """A network whose logits are two pixels times a scale: it predicts the brighter one."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.flatten(1)


def loaded(scale: float, name: str = "mine") -> LoadedNetwork:
    module = PixelComparison(scale).eval().requires_grad_(False)
    return LoadedNetwork(module=module, spec=name, sha256="ab", shape=SHAPE, architecture="compares")


def pictures(*differences: int) -> ImageDataset:
    """Images of label 0 whose first pixel is brighter by the given differences, in units of 1/255."""
    images = torch.tensor([[[[128 + d, 128]]] for d in differences], dtype=torch.uint8)
    labels = torch.zeros(len(differences), dtype=torch.int64)
    return ImageDataset(name="pictures", split="test", images=images, labels=labels, classes=("0", "1"))


def test_networks_that_view_feature_maps_are_checked_and_given_back() -> None:
    shape = Shape(num_classes=3, in_channels=1, image_size=(6, 6))
    modules = [viewing(untrained()).eval(), untrained().eval()]
    before = [placement(each) for each in modules]
    teacher, student = (
        LoadedNetwork(module=each, spec="mine", sha256="ab", shape=shape, architecture="own") for each in modules
    )
    report = check_teacher(teacher, made_up(), threat=Threat(norm="linf", eps=0.1), student=student, num_images=12)
    assert report.agreement_clean == 1
    assert [placement(each) for each in modules] == before


def test_the_report_matches_numbers_computed_by_hand() -> None:
    # An adversary of 10/255 moves the difference by 20: 50 stays correct, 10 does not, -30 was never correct.
    dataset = pictures(50, 10, -30, 60)
    report = check_teacher(loaded(4.0), dataset, threat=Threat(norm="linf", eps=10 / 255))
    assert (report.clean_accuracy, report.robust_accuracy) == (0.75, 0.5)
    clean = torch.sigmoid(4.0 * torch.tensor([50, 10, -30, 60]) / 255)
    adversarial = torch.sigmoid(4.0 * torch.tensor([30, -10, -50, 40]) / 255)
    top = torch.maximum(clean, 1 - clean)
    assert report.confidence_clean == pytest.approx(float(top.mean()), abs=1e-5)
    assert report.confidence_adversarial == pytest.approx(
        float(torch.maximum(adversarial, 1 - adversarial).mean()), abs=1e-5
    )
    # Bins of width 1/15: |accuracy − confidence| of each bin, weighted by its images.
    gaps = {}
    for probability, right in zip(top.tolist(), [1, 1, 0, 1], strict=True):
        total, count = gaps.get(int(probability * 15), (0.0, 0))
        gaps[int(probability * 15)] = (total + right - probability, count + 1)
    assert report.ece_clean == pytest.approx(sum(abs(total) for total, _ in gaps.values()) / 4, abs=1e-5)
    assert (report.images, report.of_images, report.parameters) == (4, 4, 1)
    assert (report.agreement_clean, report.agreement_adversarial) == (None, None)


def test_agreement_with_a_student_is_reported() -> None:
    dataset = pictures(50, 10, -30, 60)
    threat = Threat(norm="linf", eps=10 / 255)
    same = check_teacher(loaded(4.0), dataset, threat=threat, student=loaded(2.0))
    assert (same.agreement_clean, same.agreement_adversarial) == (1.0, 1.0)
    opposite = check_teacher(loaded(4.0), dataset, threat=threat, student=loaded(-1.0))
    assert (opposite.agreement_clean, opposite.agreement_adversarial) == (0.0, 0.0)
    assert opposite.robust_accuracy == same.robust_accuracy


def test_the_number_of_images_and_the_time_are_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = pictures(*range(-100, 100))
    threat = Threat(norm="linf", eps=0.01)
    assert check_teacher(loaded(4.0), dataset, threat=threat, num_images=50).images == 50
    clock = iter(range(0, 10_000, 10))  # ten seconds for each call
    # The clock of this module alone: other threads read the time, too.
    monkeypatch.setattr("robustill.teachers.check.time", SimpleNamespace(monotonic=lambda: next(clock)))
    # 8 images in 10 s: 12 fit into what is left of 25; then 20 in 20 s: 5 fit; nothing is left after 30.
    report = check_teacher(loaded(4.0), dataset, threat=threat, seconds=25)
    assert (report.images, report.of_images) == (25, 200)


def test_a_long_check_says_first_how_long_it_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, threat = pictures(*range(-100, 100)), Threat(norm="linf", eps=0.01)
    check_teacher(loaded(4.0), dataset, threat=threat, progress=True)
    assert capsys.readouterr().err == ""
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("robustill.core.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    check_teacher(loaded(4.0), dataset, threat=threat, progress=True)
    lines = capsys.readouterr().err.splitlines()
    # The first batch of 8 of the 200 images.
    assert lines[0].startswith("checking mine   4% · ")
    assert lines[0].endswith(" left")
    assert lines[-1].startswith("checking mine 100% · ")


def test_a_check_says_before_it_begins_how_many_images_its_time_allows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("robustill.teachers.check.seconds_per_pass", lambda *_: 0.01)
    dataset, threat = pictures(*range(-100, 100)), Threat(norm="linf", eps=0.01)
    check_teacher(loaded(4.0), dataset, threat=threat, num_images=50, progress=True)
    # 20 steps of two passes, and one look at each of 50 images before and after.
    assert capsys.readouterr().err.splitlines()[0] == "checking mine: about 21 s on this machine"
    check_teacher(loaded(4.0), dataset, threat=threat, student=loaded(1.0), seconds=22, progress=True)
    limit = "checking mine: about 22 s on this machine, the limit, for some 50 of 200 images"
    assert capsys.readouterr().err.splitlines()[0] == limit
    check_teacher(loaded(4.0), dataset, threat=threat)
    assert capsys.readouterr().err == ""


def test_networks_that_do_not_fit_are_refused() -> None:
    threat = Threat(norm="linf", eps=0.1)
    with pytest.raises(DataError, match="subset of 0 images"):
        check_teacher(loaded(1.0), pictures(1, 2), threat=threat, num_images=0)
    three = ImageDataset(
        name="three",
        split="test",
        images=torch.zeros(3, 1, 1, 2, dtype=torch.uint8),
        labels=torch.arange(3),
        classes=("a", "b", "c"),
    )
    with pytest.raises(ModelError, match="mine gives"):
        check_teacher(loaded(1.0), three, threat=threat)
    with pytest.raises(ModelError, match="pupil returns NaN"):
        check_teacher(loaded(1.0), pictures(1, 2), threat=threat, student=loaded(float("nan"), "pupil"))


# --- the command


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(small_config(), tmp_path_factory.mktemp("check") / "run", progress=False).run


def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["robustill", "teachers", "check", *words])
    code = 0
    try:
        cli.main()
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 0
    out, err = capsys.readouterr()
    return code, out, err


def test_a_run_is_checked_with_its_own_data_and_threat(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = f"run:{run}@last"
    words = [spec, "--num-images", "60", "--seconds", "3600"]
    code, out, _ = call(capsys, monkeypatch, *words, "--student", f"run:{run}@epoch-1")
    assert code == 0
    report = check_spec(spec, num_images=60, student=f"run:{run}@epoch-1")
    for expected in (
        f"teacher {spec}",
        "resnet8 width=2",
        "at linf:0.1, 2 epochs",
        f"sha256 {weights(run)}",
        f"{report.clean_accuracy:.3f}",
        f"{report.robust_accuracy:.3f}",
        f"{report.agreement_adversarial:.3f}",
        "digits validation, linf:0.1, PGD 20 steps, seed 0: 30 images, all 30",
    ):
        assert expected in out
    assert call(capsys, monkeypatch, *words)[1].count("student") == 0
    assert call(capsys, monkeypatch, spec, "--num-images", "60")[1].count("student") == 0
    out = call(capsys, monkeypatch, spec, "--num-images", "60", "--split", "test")[1]
    assert "digits test, linf:0.1, PGD 20 steps, seed 0: 60 images, a subset of 500" in out


def test_a_file_and_its_run_give_the_same_report(run: Path) -> None:
    epoch = RunDirectory(run).checkpoints.pointed("last")
    file = str(run / "checkpoints" / f"epoch-{epoch:04d}" / "model.safetensors")
    named = ["--model", "resnet8", "--model.width", "2", "--data", "digits", "--threat", "linf:0.1"]
    ours, theirs = (
        check_spec(spec, overrides=overrides, num_images=60, split="test")
        for spec, overrides in ((file, named), (f"run:{run}@last", []))
    )
    assert (ours.robust_accuracy, ours.ece_adversarial) == (theirs.robust_accuracy, theirs.ece_adversarial)
    assert ours.teacher.sha256 == weights(run)
    elsewhere = check_spec(file, overrides=named, num_images=8).conditions
    caveat = "digits validation (training images, on which this network may have been trained), li"
    assert elsewhere.startswith(caveat)
    # Other validation images of the same data are training images of this run, for the most part.
    for words in (("--data.split_seed", "1"), ("--data.validation", "0.5")):
        assert check_spec(f"run:{run}@last", overrides=words, num_images=8).conditions.startswith(caveat)
    assert "trained" not in check_spec(f"run:{run}@last", num_images=8).conditions


def test_images_that_were_added_since_the_training_are_not_held_out(tmp_path: Path) -> None:
    recipe(tmp_path / "data")
    config = load_config(tmp_path / "data" / "tiny.yaml")
    train(config, tmp_path / "run", progress=False)
    spec = f"run:{tmp_path / 'run'}@last"
    assert "trained" not in check_spec(spec, num_images=8).conditions
    with np.load(tmp_path / "data" / "train.npz") as stored:
        more = {name: np.concatenate([stored[name], stored[name][:8]]) for name in ("images", "labels")}
    np.savez(tmp_path / "data" / "train.npz", **more)
    assert "on which this network may have been trained" in check_spec(spec, num_images=8).conditions


def test_data_without_training_images_says_how_to_check(run: Path, tmp_path: Path) -> None:
    overrides = ["--data", "npz", "--data.root", str(tmp_path)]
    with pytest.raises(DataError, match=r"train.npz; give --data.root, or --split test to check on test images$"):
        check_spec(f"run:{run}@last", overrides=overrides)


def test_errors_are_one_line(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    digits = ["--data", "digits", "--threat", "linf:0.1"]
    for words, expected in [
        (["robustbench:Standrd", *digits], "did you mean Standard?"),
        (["robustbench:Standard", *digits], "here are 1×8×8 images, 10 classes"),
        (["robustbench:Standard"], "give --data too"),
        ([f"run:{run}", "--optim.epochs", "3"], "--optim has no effect"),
        ([f"run:{run}", "--sha256", "0" * 64], "has sha256"),
        ([f"run:{run}", "--student", "nowhere"], "nowhere not found"),
        ([f"run:{run}@epoch-7"], "no checkpoint 'epoch-7'"),
        (["nowhere.pt", *digits, "--model", "resnet8"], "nowhere.pt not found"),
    ]:
        code, out, err = call(capsys, monkeypatch, *words)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert expected in err


def test_a_setting_without_effect_is_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match="--seed has no effect"):
        check_spec(f"run:{run}", overrides=["--seed", "3"])
