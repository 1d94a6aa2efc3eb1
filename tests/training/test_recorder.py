"""Records of training images: their values are right, and recording does not change the training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.small_runs import lines, small_config, tree, weights
from robustill.config.split import Split
from robustill.core.errors import RunError
from robustill.methods import Batch, build_method
from robustill.runs.directory import RunDirectory
from robustill.runs.dynamics import Dynamics, has_dynamics, read_dynamics
from robustill.training.loop import train
from robustill.training.recorder import Recorder, measure
from robustill.training.step import Step, StepLogits


def trained(run: Path, **changes: object) -> Path:
    return train(small_config(**changes), run, progress=False).run


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("teacher") / "run", seed=5)


def test_measure_is_cross_entropy_margin_and_argmax() -> None:
    z = 4 * torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    y = torch.arange(50) % 7
    loss, margin, correct = measure(z, y).T
    torch.testing.assert_close(loss, F.cross_entropy(z, y, reduction="none"))
    others = [max(float(z[i, k]) for k in range(7) if k != y[i]) for i in range(50)]
    torch.testing.assert_close(margin, z[range(50), y] - torch.tensor(others))
    assert torch.equal(correct == 1, z.argmax(dim=1) == y)


def test_measure_takes_probabilities_of_zero_and_one() -> None:
    loss, margin, correct = measure(torch.tensor([[0.0, -torch.inf], [0.0, -torch.inf]]), torch.tensor([0, 1])).T
    assert loss.tolist() == [0, torch.inf]
    assert margin.tolist() == [torch.inf, -torch.inf]
    assert correct.tolist() == [1, 0]


@pytest.mark.parametrize("method", ["at", "trades", "clean", "akd", "rslad"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_records_are_those_of_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: Path, method: str, accumulate: int
) -> None:
    found: list[dict[int, float]] = []
    parts = Step.parts

    def watched(self: Step, batch: Batch, *rest: object):  # type: ignore[no-untyped-def]
        for part, outcome in parts(self, batch, *rest):  # type: ignore[arg-type]
            p = outcome.logits.detach().double().softmax(dim=1)
            if len(found) == part.epoch:
                found.append({})
            found[part.epoch] |= {int(i): float(row[y]) for i, row, y in zip(part.index, p, part.y, strict=True)}
            yield part, outcome

    monkeypatch.setattr(Step, "parts", watched)
    teachers = [f"run:{teacher}@best"] if method in ("akd", "rslad") else []
    run = trained(tmp_path / "run", method={"name": method}, teachers=teachers, optim={"accumulate": accumulate})
    dynamics = read_dynamics(run)
    assert dynamics.num_epochs == 2
    series = dynamics.student
    assert series.epochs.tolist() == [1, 2]
    assert (dynamics.adversarial is None) == (method == "clean")
    expected = np.array([[each[i] for i in dynamics.ids.tolist()] for each in found])
    np.testing.assert_allclose(series.probability, expected, rtol=3e-3)
    np.testing.assert_array_equal(series.correct.sum(axis=1), [round(40 * x) for x in accuracies(run)])
    looks = {name for name in ("clean", "teacher_adversarial", "teacher_clean") if getattr(dynamics, name) is not None}
    assert looks == {"clean"} | {"akd": {"teacher_adversarial"}, "rslad": {"teacher_clean"}}.get(method, set())
    # A pass of its own comes every fifth epoch and in the last; one that the method makes anyway, in every.
    assert dynamics.clean is not None
    assert dynamics.clean.epochs.tolist() == ([2] if method in ("at", "akd") else [1, 2])


def accuracies(run: Path) -> list[float]:
    return [line["train_adversarial_accuracy"] for line in lines(run)]


def test_a_teachers_records_are_the_same_in_every_epoch(tmp_path: Path, teacher: Path) -> None:
    # Unaugmented images are the same in every epoch, and so is what a frozen teacher says of them.
    run = trained(tmp_path / "run", method={"name": "rslad"}, teachers=[f"run:{teacher}@best"])
    look = read_dynamics(run).teacher_clean
    assert look is not None
    np.testing.assert_array_equal(look.loss[0], look.loss[1])
    assert np.isfinite(look.loss).all()
    assert look.loss.std() > 0


def test_the_robust_one_of_two_teachers_is_recorded(tmp_path: Path, teacher: Path) -> None:
    specs = [{"spec": f"run:{teacher}@best", "role": role} for role in ("robust", "natural")]
    dynamics = read_dynamics(trained(tmp_path / "run", method={"name": "mtard"}, teachers=specs))
    assert dynamics.teacher_adversarial is not None
    assert dynamics.teacher_clean is None


@pytest.mark.parametrize(
    "change",
    [{}, {"optim": {"accumulate": 2}}, {"attack": {"batchnorm": "train"}}, {"compute": {"precision": "bf16"}}],
)
def test_recording_does_not_change_the_training(tmp_path: Path, change: dict) -> None:
    without = trained(tmp_path / "without", dynamics={"record": False}, **change)
    assert not (without / "dynamics").exists()
    with pytest.raises(RunError, match="has no dynamics"):
        read_dynamics(without)
    for every in (1, 2, 5):
        run = trained(tmp_path / f"every-{every}", dynamics={"clean_every": every}, **change)
        assert weights(run) == weights(without)
        assert lines(run) == lines(without)
        assert has_dynamics(run)


def test_the_clean_pass_changes_no_state() -> None:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3))
    step = Step(student, build_method("clean"), None, small_config().threat.build(), steps=1, step_size=0.1)
    x = torch.rand(6, 1, 2, 2)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    logits = step.clean_logits(Batch(x=x, y=torch.zeros(6, dtype=torch.int64), index=torch.arange(6)))
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    assert student.training
    torch.testing.assert_close(logits, student(x))


def one_epoch(tmp_path: Path, batch: Batch, logits: torch.Tensor, **split: torch.Tensor) -> Dynamics:
    """The records of a run of one epoch of one batch."""
    RunDirectory(tmp_path).start("seed: 0\n")
    parts = {"train": torch.tensor([3, 1, 8]), "labels": torch.arange(10) % 3, "flipped": torch.tensor([8])}
    parts |= {"left_out": torch.tensor([9]), **split}
    recorder = Recorder(tmp_path, 1, Split(validation=torch.tensor([0]), **parts), 1, torch.device("cpu"))
    recorder.start(0)
    recorder.record(batch, StepLogits(adversarial=logits, clean=logits, teacher_adversarial=None, teacher_clean=None))
    recorder.write(1)
    RunDirectory(tmp_path).append_metrics({"epoch": 1})
    return read_dynamics(tmp_path)


def test_records_are_sorted_by_id_with_labels_and_flips(tmp_path: Path) -> None:
    ids = torch.tensor([8, 3])
    batch = Batch(x=torch.zeros(2, 1, 1, 1), y=ids % 3, index=ids)
    dynamics = one_epoch(tmp_path, batch, torch.tensor([[0.0, 0.0, 5.0], [3.0, 0.0, 0.0]]))
    assert dynamics.ids.tolist() == [1, 3, 8]
    assert dynamics.labels.tolist() == [1, 0, 2]
    assert dynamics.flipped.tolist() == [False, False, True]
    series = dynamics.student
    assert series.recorded.tolist() == [[False, True, True]]
    assert series.correct.tolist() == [[False, True, True]]
    np.testing.assert_allclose(series.margin[0, 1:], [3, 5])


def test_mixed_and_foreign_images_are_recorded_only_by_label(tmp_path: Path) -> None:
    ids = torch.tensor([8, 3, 9, 0])
    # 8 shows mostly a class that is not its own; 9 and 0 are not trained on.
    batch = Batch(x=torch.zeros(4, 1, 1, 1), y=torch.tensor([0, 0, 0, 0]), index=ids)
    dynamics = one_epoch(tmp_path, batch, torch.tensor([[5.0, 0.0, 0.0]]).repeat(4, 1))
    assert dynamics.student.recorded.tolist() == [[False, True, False]]


def test_the_warning_of_a_misleading_teacher_counts_recorded_images(tmp_path: Path) -> None:
    none, ids = torch.arange(0), torch.arange(100)
    labels = torch.zeros(300, dtype=torch.int64)
    split = Split(train=torch.arange(300), validation=none, labels=labels, flipped=none, left_out=none)
    RunDirectory(tmp_path).start("seed: 0\n")
    recorder = Recorder(tmp_path, 1, split, 1, torch.device("cpu"))
    recorder.start(0)

    def right_on(count: int) -> torch.Tensor:
        return F.one_hot((ids >= count).long(), 2).float()

    adversarial, teacher = right_on(80), right_on(40)
    batch = Batch(x=torch.zeros(100, 1, 1, 1), y=labels[ids], index=ids)
    recorder.record(
        batch, StepLogits(adversarial=adversarial, clean=None, teacher_adversarial=teacher, teacher_clean=None)
    )
    with pytest.warns(UserWarning, match=r"teacher is right on 0\.400 .* the student itself on 0\.800"):
        recorder.write(1)


def test_extreme_values_stay_finite_numbers(tmp_path: Path) -> None:
    ids = torch.tensor([1, 3, 8])
    logits = torch.tensor([[0.0, 1e6, 0.0], [-torch.inf, 0.0, 0.0], [0.0, 0.0, 1e-3]])
    series = one_epoch(tmp_path, Batch(x=torch.zeros(3, 1, 1, 1), y=ids % 3, index=ids), logits).student
    assert np.isfinite(series.loss).all()
    assert np.isfinite(series.margin).all()
    assert series.probability[0].tolist() == [1, 0, pytest.approx(1 / 3, rel=2e-3)]


def test_a_hundred_epochs_of_cifar10_take_under_200_mb(tmp_path: Path) -> None:
    n = 50_000
    none = torch.arange(0)
    split = Split(train=torch.arange(n), validation=none, labels=torch.arange(n) % 10, flipped=none, left_out=none)
    recorder = Recorder(tmp_path, 1, split, 1, torch.device("cpu"))
    logits = torch.randn(n, 10, generator=torch.Generator().manual_seed(0))
    batch = Batch(x=torch.zeros(n, 1, 1, 1), y=split.labels, index=split.train)
    recorder.record(
        batch, StepLogits(adversarial=logits, clean=logits, teacher_adversarial=logits, teacher_clean=logits)
    )
    recorder.write(1)
    assert 100 * (tmp_path / "dynamics" / "epoch-0001.npz").stat().st_size < 100e6


@pytest.mark.parametrize("damage", ["truncated", "missing", "bit", "shape"])
def test_damaged_records_are_refused(tmp_path: Path, damage: str) -> None:
    run = trained(tmp_path / "run")
    file = run / "dynamics" / "epoch-0001.npz"
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "shape":
        np.savez(file, adversarial_loss=np.zeros(7, np.float16))
    else:
        content[200] ^= 1
        file.write_bytes(content if damage == "bit" else content[:100])
    with pytest.raises(RunError, match=r"epoch-0001\.npz is (damaged|missing)") as caught:
        read_dynamics(run)
    assert "\n" not in str(caught.value)


def test_records_of_unfinished_epochs_are_ignored(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    before = tree(run / "dynamics")
    text = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(text[0])
    RunDirectory(run).checkpoints.point("last", 1)
    assert read_dynamics(run).num_epochs == 1
    # Going on trains no epoch again, for its checkpoint is there; the records stay the same bytes.
    trained(tmp_path / "run")
    assert tree(run / "dynamics") == before
