"""Numbers that go wrong and memory that runs out are reported in one line and handled as documented."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.small_runs import lines, small_config, small_values, tree, weights
from robustill.config.schema import make_config
from robustill.core.device import is_out_of_memory, largest_fitting_batch
from robustill.core.errors import ConfigError, RunError
from robustill.evaluation.targets import evaluate_run
from robustill.runs.directory import RunDirectory
from robustill.training import loop as module
from robustill.training.diagnostics import (
    at_chance,
    catastrophic_overfitting,
    describe_not_finite,
    epoch_warnings,
    misleading_teacher,
    out_of_patience,
)
from robustill.training.loop import train
from robustill.training.step import Step


def trained(run: Path, **changes: object) -> Path:
    return train(small_config(**changes), run, progress=False).run


def line(epoch: int, trained: float, robust: float | None = None, loss: float = 1.0) -> dict[str, Any]:
    looked = {} if robust is None else {"validation_robust_accuracy": robust}
    return {"epoch": epoch, "train_adversarial_accuracy": trained, "train_loss": loss, **looked}


# --- metrics


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (line(3, 0.9, 0.01), True),
        (line(3, 0.9, 0.2), True),
        (line(3, 0.9, 0.21), False),  # Half of the best is robust overfitting as everybody has it.
        (line(3, 0.4, 0.01), False),  # Training accuracy fell, too: something else went wrong.
        (line(3, 0.9), False),  # Nobody looked.
    ],
)
def test_catastrophic_overfitting_is_a_fall_below_half(now: dict[str, Any], expected: bool) -> None:
    before = [line(1, 0.5, 0.4), line(2, 0.6)]
    assert (catastrophic_overfitting(before, now, 1000) is not None) == expected
    assert bool(epoch_warnings(before, now, 1000, 10)) == expected


@pytest.mark.parametrize(
    ("epoch", "clean", "expected"),
    [(9, 0.1, False), (10, 0.1, True), (11, 0.02, True), (10, 0.128, True), (10, 0.129, False), (10, None, False)],
)
def test_accuracy_at_chance_in_the_tenth_epoch(epoch: int, clean: float | None, expected: bool) -> None:
    now = line(epoch, 0.1) | ({} if clean is None else {"validation_clean_accuracy": clean})
    early = line(9, 0.1) | {"validation_clean_accuracy": 0.1}
    # Three standard errors of 1,000 images of ten classes are 0.0285.
    assert (at_chance([early], now, 1000, 10) is not None) == expected


def test_accuracy_at_chance_is_reported_once(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="epoch 10: clean accuracy .* is that of guessing") as caught:
        trained(tmp_path / "run", optim={"epochs": 12, "schedule": "constant", "learning_rate": 1e-9})
    assert len(caught) == 1


def test_a_small_fall_is_no_overfitting_a_large_one_is_one() -> None:
    assert catastrophic_overfitting([line(1, 0.1, 0.15)], line(2, 0.2, 0.06), 1000) is None
    before = [line(1, 0.5, 0.4), line(2, 0.8, 0.02)]
    assert epoch_warnings(before[:1], before[1], 1000, 10)
    assert not epoch_warnings(before, line(3, 0.9, 0.01), 1000, 10)
    # Of twenty images, two right where there were six is within the noise.
    assert catastrophic_overfitting([line(1, 0.5, 0.3)], line(2, 0.6, 0.1), 20) is None


def test_an_exploding_loss_is_reported_once() -> None:
    before = [line(1, 0.5, loss=2.0), line(2, 0.5, loss=1.0)]
    (message,) = epoch_warnings(before, line(3, 0.1, loss=11.0), 1000, 10)
    assert message.startswith(
        "epoch 3: the training loss is 11, more than 10 times its lowest value: gradients explode"
    )
    assert not epoch_warnings(before, line(3, 0.1, loss=9.0), 1000, 10)
    assert not epoch_warnings([*before, line(3, 0.1, loss=11.0)], line(4, 0.1, loss=12.0), 1000, 10)


def test_loss_or_weights_that_are_not_finite_are_named() -> None:
    assert describe_not_finite(1.0, True) is None
    assert describe_not_finite(math.nan, True) == "a loss of nan"
    assert describe_not_finite(math.inf, False) == "a loss of inf"
    assert describe_not_finite(1.0, False) == "weights that are not finite"


def test_patience_counts_validations_after_the_first_best() -> None:
    looks = [line(1, 0, 0.3), line(2, 0), line(3, 0, 0.3), line(4, 0, 0.1)]
    assert out_of_patience(looks, 2)
    assert not out_of_patience(looks, 3)
    assert not out_of_patience([], 1)


# --- rollbacks


def breaking(monkeypatch: pytest.MonkeyPatch, epoch: int, times: int) -> list[float]:
    """An epoch (counted from 0) whose weights become NaN the first times that it is trained; the rates it had."""
    rate, left, rates = module._Loop._set_rate, [times], []

    def broken(self: module._Loop, step: int) -> float:
        value = rate(self, step)
        if self.epochs_done == epoch and self.steps_done == 0 and step % len(self.batches) == 0:
            rates.append(value)
            if left[0] > 0:
                left[0] -= 1
                with torch.no_grad():
                    next(self.student.parameters()).fill_(math.nan)
        return value

    monkeypatch.setattr(module._Loop, "_set_rate", broken)
    return rates


OPTIM = {"epochs": 4, "schedule": "constant", "learning_rate": 0.1, "ema": 0.9, "swa": 0.0}


def test_a_run_rolls_back_and_halves_the_learning_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = breaking(monkeypatch, epoch=2, times=2)
    with pytest.warns(UserWarning, match="epoch 3 gave .*; back to the end of epoch 2 with half the learning rate"):
        run = trained(tmp_path / "run", optim={**OPTIM, "rollbacks": 2})
    assert rates == [0.1, 0.05, 0.025]
    found = RunDirectory(run).metrics()
    assert [each["epoch"] for each in found] == [1, 2, 3, 4]
    assert [each["learning_rate"] for each in found] == [0.1, 0.1, 0.025, 0.025]
    assert all(bool(value.isfinite().all()) for value in RunDirectory(run).checkpoints.weights("last")[0].values())
    # A complete run of the same settings is left as it is: what was rolled back is written with it.
    before = tree(run)
    trained(tmp_path / "run", optim={**OPTIM, "rollbacks": 2})
    assert tree(run) == before


def test_a_run_without_a_rollback_left_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    breaking(monkeypatch, epoch=1, times=9)
    with (
        pytest.warns(UserWarning, match="back to the end of epoch 1"),
        pytest.raises(RunError, match=r"epoch 2 gave a loss of nan; epoch 1 is kept: try .* or optim\.rollbacks"),
    ):
        trained(tmp_path / "run", optim={**OPTIM, "rollbacks": 1})
    assert [each["epoch"] for each in lines(tmp_path / "run")] == [1]


def collapsing(monkeypatch: pytest.MonkeyPatch, robust: dict[int, list[float]]) -> None:
    """Held-out robust accuracies by epoch, one for each time that it is trained; training accuracy only rises."""
    train_epoch, looks = module._Loop._train_epoch, {epoch: iter(values) for epoch, values in robust.items()}

    def rising(self: module._Loop, bar: Any) -> Any:
        found = train_epoch(self, bar)
        return None if found is None else {**found, "train_adversarial_accuracy": 0.1 * found["epoch"]}

    def validate(self: module._Loop) -> dict[str, float]:
        now = next(looks[self.epochs_done + 1])
        return {"validation_clean_accuracy": 0.9, "validation_robust_accuracy": now}

    monkeypatch.setattr(module._Loop, "_train_epoch", rising)
    monkeypatch.setattr(module._Loop, "_validate", validate)


def test_catastrophic_overfitting_warns_and_keeps_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collapsing(monkeypatch, {1: [0.3], 2: [0.4], 3: [0.01], 4: [0.0]})
    with pytest.warns(UserWarning, match="epoch 3: robust accuracy on validation images fell from 0.400") as caught:
        run = trained(tmp_path / "run", optim=OPTIM)
    assert len(caught) == 1
    assert RunDirectory(run).checkpoints.pointed("best") == 2
    assert len(lines(run)) == 4


def test_catastrophic_overfitting_rolls_back_to_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collapsing(monkeypatch, {1: [0.3], 2: [0.4], 3: [0.35, 0.41], 4: [0.01, 0.42]})
    with pytest.warns(UserWarning, match="epoch 4: robust accuracy .* back to the end of epoch 2 with half"):
        run = trained(tmp_path / "run", optim={**OPTIM, "rollbacks": 1})
    found = RunDirectory(run).metrics()
    assert [each["learning_rate"] for each in found] == [0.1, 0.1, 0.05, 0.05]
    assert [each["validation_robust_accuracy"] for each in found] == [0.3, 0.4, 0.41, 0.42]


def test_a_killed_rollback_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    robust = {1: [0.3], 2: [0.4], 3: [0.35, 0.41], 4: [0.01, 0.42]}
    settings = {"optim": {**OPTIM, "rollbacks": 1}, "keep_every": 1}
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collapsing(patch, robust)
        whole = trained(tmp_path / "whole", **settings)
        run = tmp_path / "run"
        # After the third epoch, which is not the best one, has been removed, and before anything else is done.
        collapsing(patch, robust)
        rewind = RunDirectory.rewind

        def killed(self: RunDirectory, checkpoint: Any) -> None:
            if checkpoint is not None and checkpoint.epoch == 2:
                raise KeyboardInterrupt
            rewind(self, checkpoint)

        patch.setattr(RunDirectory, "rewind", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(run, **settings)
        assert RunDirectory(run).checkpoints.epochs() == [1, 2]
        patch.setattr(RunDirectory, "rewind", rewind)
        # It comes to the same place again, by the same epochs.
        collapsing(patch, {3: [0.35, 0.41], 4: [0.01, 0.42]})
        trained(run, **settings)
    assert lines(run) == lines(whole)
    assert weights(run) == weights(whole)
    assert tree(run / "dynamics") == tree(whole / "dynamics")


def test_a_run_from_before_a_setting_existed_resumes(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    file = run / "config.yaml"
    kept = [each for each in file.read_text().splitlines(keepends=True) if "rollbacks" not in each]
    file.write_text("".join(kept[1:]))
    assert len(kept) == len(file.read_text().splitlines()) + 1
    trained(tmp_path / "run")


# --- data and teachers


def npz(folder: Path, labels: np.ndarray) -> dict[str, Any]:
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 1, 8, 8), dtype=np.uint8)
    for split in ("train", "test"):
        np.savez(folder / f"{split}.npz", images=images, labels=labels)
    return {"name": "npz", "root": str(folder), "train_size": None, "validation": 30}


def test_a_class_without_images_is_a_warning(tmp_path: Path) -> None:
    data = {**npz(tmp_path, np.array([0, 2, 3] * 20)), "num_classes": 5}
    with pytest.warns(UserWarning, match="have no image|no images of") as caught:
        run = trained(tmp_path / "run", data=data)
    assert [str(each.message) for each in caught] == [
        f"{tmp_path / 'test.npz'}: no images of 2 of the 5 classes (1, 4): the results are about the other classes",
        *(f"2 of 5 classes have no image {what}: 1, 4" for what in ("to train on", "to validate on")),
    ]
    assert len(lines(run)) == 2


@pytest.mark.parametrize("method", ["fair_ard", "dkl", "mart", "trades", "saad"])
def test_a_batch_without_most_classes_gives_finite_numbers(tmp_path: Path, method: str) -> None:
    changes: dict[str, Any] = {"method": {"name": method}, "optim": {"batch_size": 3, "epochs": 1}}
    changes["data"] = {"train_size": 10}
    if method in ("fair_ard", "saad"):
        changes["teachers"] = [f"run:{trained(tmp_path / 'teacher', optim={'epochs': 1})}@last"]
    run = trained(tmp_path / "run", **changes)
    assert math.isfinite(lines(run)[0]["train_loss"])


def test_a_teacher_no_better_than_chance_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = trained(tmp_path / "teacher", optim={"epochs": 1, "learning_rate": 1e-9})
    config = small_config(method={"name": "akd"}, teachers=[f"run:{teacher}@last"])
    train(config, tmp_path / "run")
    warning = f"warning: teacher run:{teacher}@last is no better than guessing"
    assert warning in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "rate", "misleads"),
    [
        ({"name": "akd", "alpha": 0.2}, 1e-9, True),
        ({"name": "akd"}, 0.1, False),
        ({"name": "rslad"}, 1e-9, False),
    ],
)
def test_a_misleading_teacher_is_a_warning(
    tmp_path: Path, method: dict[str, Any], rate: float, misleads: bool, recwarn: pytest.WarningsRecorder
) -> None:
    data = {"train_size": 400}
    teacher = trained(tmp_path / "teacher", data=data, optim={"epochs": 8, "learning_rate": rate})
    trained(tmp_path / "run", data=data, method=method, teachers=[f"run:{teacher}@last"], optim={"epochs": 8})
    found = [str(each.message) for each in recwarn]
    assert [line.partition(" of the")[0].split(" is right on")[0] for line in found] == (
        ["epoch 2: the teacher"] if misleads else []
    )
    assert all("teaches its mistakes" in line for line in found)


@pytest.mark.parametrize(
    ("epoch", "student", "teacher", "misleads"),
    [
        (3, 0.5, 0.43, True),
        (3, 0.5, 0.46, False),
        (3, 0.4, 0.6, False),
        (2, 0.5, 0.1, False),
        (4, 0.5, 0.1, False),
    ],
)
def test_a_teacher_is_checked_once_and_beyond_noise(epoch: int, student: float, teacher: float, misleads: bool) -> None:
    # Three standard errors of 1,000 images are 0.047; a quarter of ten epochs is done after the third.
    assert (misleading_teacher(epoch, 10, student, teacher, 1000) is not None) == misleads


def test_a_last_batch_of_one_image_may_be_refused(tmp_path: Path) -> None:
    changes = {"data": {"train_size": 41}}
    run = trained(tmp_path / "fits", **changes)
    assert len(lines(run)) == 2
    # Three halvings of 8×8 pixels leave one.
    values = {**small_values(data={"train_size": 41}), "model": {"name": "resnet18"}}
    with pytest.raises(ConfigError, match=r"the last batch \(41 images by 20s\) has one image, .*: change data\.train"):
        train(make_config(values), tmp_path / "run", progress=False)
    values = {**small_values(data={"train_size": 42}, optim={"accumulate": 2}), "model": {"name": "resnet18"}}
    with pytest.raises(ConfigError, match=r"the last batch \(42 images by 20s in 2 parts\) has one image"):
        train(make_config(values), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


# --- memory


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_training_reports_how_many_images_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    attack = Step._attack

    def small(self: Step, batch: Any, *rest: Any) -> torch.Tensor:
        if len(batch.y) > 6:
            raise kind("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes")
        return attack(self, batch, *rest)

    monkeypatch.setattr(Step, "_attack", small)
    with pytest.raises(RunError) as caught:
        trained(tmp_path / "run")
    assert str(caught.value) == (
        "out of memory: 20 images at a time are too many for cpu: 5 at a time fit, found by halving: "
        "start another --run with --optim.accumulate 4 or --optim.batch_size 5"
    )
    assert len(lines(trained(tmp_path / "other", optim={"accumulate": 4}))) == 2


def test_an_evaluation_reports_how_many_images_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(tmp_path / "run")
    forward = torch.nn.Conv2d.forward

    def small(self: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x)

    settings = {"checkpoints": ["last"], "suite": "pgd-20", "progress": False, "num_images": 40, "eps_curve": False}
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Conv2d, "forward", small)
        with pytest.raises(RunError, match=r"with --batch-size 16 resumes and gives the same records") as caught:
            evaluate_run(run, **settings, batch_size=32)
        assert str(caught.value).startswith("out of memory: 32 images at a time are too many for cpu: 16 at a time fit")
        (small_batches,) = evaluate_run(run, **settings, batch_size=16).values()
    (large,) = evaluate_run(run, **settings, batch_size=40).values()
    np.testing.assert_array_equal(small_batches.robust, large.robust)


def test_no_fitting_batch_and_other_errors() -> None:
    def never(images: int) -> None:
        raise MemoryError

    assert largest_fitting_batch(never, 100) is None
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ValueError("out of memory"))

    def wrong(images: int) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        largest_fitting_batch(wrong, 8)
