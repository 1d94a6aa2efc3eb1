"""The loop: the same weights for the same configuration, whatever is validated, saved or averaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.small_runs import lines, small_config, tree, weights
from robustill.config import split as split_module
from robustill.core.errors import RunError
from robustill.models.loading import load_network
from robustill.runs.directory import RunDirectory
from robustill.training import loop as module
from robustill.training.loop import train


def trained(run: Path, **changes: object) -> Path:
    return train(small_config(**changes), run, progress=False).run


def test_the_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    one, two = trained(tmp_path / "one"), trained(tmp_path / "two")
    assert lines(one) == lines(two)
    assert weights(one) == weights(two)


def test_the_global_generator_is_not_used_and_is_restored(tmp_path: Path) -> None:
    torch.manual_seed(1)
    one = trained(tmp_path / "one")
    torch.manual_seed(2)
    before = torch.get_rng_state()
    two = trained(tmp_path / "two")
    assert torch.equal(torch.get_rng_state(), before)
    assert weights(one) == weights(two)


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"optim": {"learning_rate": 0.05}}, {"data": {"split_seed": 1}}, {"attack": {"start": "clean"}}],
)
def test_a_setting_that_matters_changes_the_weights(tmp_path: Path, change: dict) -> None:
    assert weights(trained(tmp_path / "one")) != weights(trained(tmp_path / "two", **change))


def test_the_validation_interval_changes_no_weight(tmp_path: Path) -> None:
    every = trained(tmp_path / "every", optim={"epochs": 3})
    seldom = trained(tmp_path / "seldom", optim={"epochs": 3}, validation={"every": 2, "steps": 3}, keep_every=1)
    assert weights(every) == weights(seldom)
    looked = ["validation_robust_accuracy" in line for line in lines(seldom)]
    assert looked == [False, True, True]


def test_ema_averages_the_weights_and_changes_none(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", keep_every=1)
    averaged = trained(tmp_path / "averaged", optim={"ema": 0.999}, keep_every=1)
    assert weights(plain) == weights(averaged)
    # d_i = min(d, (1+i)/(10+i)) over the 4 steps; with one step an epoch it can be followed from outside.
    single = {"optim": {"epochs": 2, "batch_size": 40, "ema": 0.15}, "keep_every": 1}
    run = RunDirectory(trained(tmp_path / "single", **single))
    first, second = (run.checkpoints.weights(f"epoch-{epoch}")[0] for epoch in (1, 2))
    average = [run.checkpoints.weights(f"epoch-{epoch}-ema")[0] for epoch in (1, 2)]
    for name, value in average[1].items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.15 * average[0][name] + 0.85 * second[name])
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_the_documented_checkpoints_are_kept(tmp_path: Path) -> None:
    run = RunDirectory(trained(tmp_path / "run", optim={"epochs": 7}, keep_every=3))
    best = run.checkpoints.pointed("best")
    assert set(run.checkpoints.epochs()) == {best, 3, 6, 7}
    robust = [line["validation_robust_accuracy"] for line in run.metrics()]
    assert best == robust.index(max(robust)) + 1
    assert run.checkpoints.pointed("last") == 7


def test_patience_stops_a_run_that_no_longer_improves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    robust = iter([0.1, 0.3, 0.3, 0.2, 0.9])
    monkeypatch.setattr("robustill.training.validation.validation_accuracy", lambda *_, **__: (0.5, next(robust)))
    run = trained(tmp_path / "run", optim={"epochs": 5}, validation={"patience": 2})
    assert len(lines(run)) == 4
    assert RunDirectory(run).checkpoints.pointed("best") == 2
    # The same command goes no further.
    assert len(train(small_config(optim={"epochs": 5}, validation={"patience": 2}), run, progress=False).metrics) == 4


@pytest.mark.parametrize("where", ["loss", "weights"])
def test_a_run_stops_at_numbers_that_are_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    rate = module._Loop._set_rate

    def broken(self: module._Loop, step: int) -> float:
        if self.epochs_done == 1:
            with torch.no_grad():
                last = step % len(self.setup.loader) == 1
                parameter = next(self.student.parameters())
                if where == "loss":
                    parameter.fill_(float("nan"))
                elif last:
                    # The loss of the last step is finite, and what the step makes of the weights is not.
                    self.optimizer.state[parameter]["momentum_buffer"].fill_(float("inf"))
        return rate(self, step)

    monkeypatch.setattr(module._Loop, "_set_rate", broken)
    with pytest.raises(RunError, match=r"epoch 2 gave .*; epoch 1 is kept: try a smaller optim\.learning_rate"):
        trained(tmp_path / "run")
    monkeypatch.undo()
    assert [line["epoch"] for line in lines(tmp_path / "run")] == [1]
    assert weights(trained(tmp_path / "run")) == weights(trained(tmp_path / "whole"))


def test_the_test_images_are_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, splits = split_module.load, []

    def watched(name: str, **settings: object):  # type: ignore[no-untyped-def]
        splits.append(settings["split"])
        assert settings["split"] == "train"
        return load(name, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(split_module, "load", watched)
    teacher = trained(tmp_path / "teacher")
    trained(tmp_path / "student", method={"name": "akd"}, teachers=[f"run:{teacher}@best"])
    assert splits == ["train", "train"]


def test_akd_with_alpha_zero_is_adversarial_training(tmp_path: Path) -> None:
    teacher = trained(tmp_path / "teacher", seed=5)
    plain = RunDirectory(trained(tmp_path / "at")).checkpoints.weights("last")[0]
    akd = {"name": "akd", "alpha": 0.0}
    run = RunDirectory(trained(tmp_path / "akd", method=akd, teachers=[f"run:{teacher}@last"]))
    student = run.checkpoints.weights("last")[0]
    for name, value in plain.items():
        torch.testing.assert_close(student[name], value, rtol=1e-4, atol=1e-5)


def test_any_kept_epoch_can_be_a_teacher(tmp_path: Path) -> None:
    teacher = trained(tmp_path / "teacher", optim={"epochs": 3, "ema": 0.9}, keep_every=1)
    specs = [f"run:{teacher}@epoch-1", {"spec": f"run:{teacher}@epoch-2-ema", "weight": 2.0}]
    run = RunDirectory(trained(tmp_path / "student", method={"name": "akd"}, teachers=specs))
    cards = run.read_json("teachers.json")
    assert cards is not None
    assert [(card["epoch"], card["weight"]) for card in cards["teachers"]] == [(1, 1.0), (2, 2.0)]
    assert [card["sha256"] for card in cards["teachers"]] == [
        weights(teacher, "epoch-1"),
        weights(teacher, "epoch-2-ema"),
    ]
    # Nothing of a teacher is in the student's checkpoint.
    assert run.checkpoints.weights("last")[0].keys() == RunDirectory(teacher).checkpoints.weights("last")[0].keys()


def test_a_teacher_is_not_changed(tmp_path: Path) -> None:
    teacher = trained(tmp_path / "teacher")
    before = tree(teacher)
    trained(tmp_path / "student", method={"name": "rslad"}, teachers=[f"run:{teacher}@best"])
    assert tree(teacher) == before
    loaded = load_network(f"run:{teacher}@best").module
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize(
    "change",
    [
        {"method": {"name": "clean"}},
        {"method": {"name": "trades"}, "optim": {"clip_norm": 1.0, "schedule": "cosine"}},
        {"threat": {"norm": "l2", "eps": 0.5}, "optim": {"name": "adamw", "learning_rate": 0.001}},
        {"threat": {"norm": "l1", "eps": 2.0}, "optim": {"nesterov": True, "decay_all": False}},
        {"compute": {"precision": "bf16"}, "model": {"name": "resnet8", "width": 4}},
        {"data": {"augmentation": ["shift", {"crop": {"pad": 2}}], "label_noise": 0.2}},
        {"attack": {"batchnorm": "train"}, "optim": {"schedule": "multistep"}},
    ],
)
def test_every_kind_of_run_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict
) -> None:
    whole = trained(tmp_path / "whole", **change)
    original = module._Loop._train_epoch

    def stops(self: module._Loop, bar: object):  # type: ignore[no-untyped-def]
        if self.epochs_done == 1:
            raise KeyboardInterrupt
        return original(self, bar)  # type: ignore[arg-type]

    monkeypatch.setattr(module._Loop, "_train_epoch", stops)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", **change)
    monkeypatch.undo()
    run = trained(tmp_path / "run", **change)
    assert lines(run) == lines(whole)
    assert weights(run) == weights(whole)
    assert tree(run / "dynamics") == tree(whole / "dynamics")
