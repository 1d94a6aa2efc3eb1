"""Training techniques in whole runs: each does what it says, and a killed run resumes to the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.small_runs import lines, small_config, small_values, weights
from helpers.tiny_networks import CLASSES, scene, tiny_network
from robustill import losses
from robustill.config.schema import make_config
from robustill.core.errors import ConfigError, RobustillError, RunError
from robustill.data import load
from robustill.evaluation.targets import evaluate_run
from robustill.methods import METHODS, Batch, Method, Outcome, build_method
from robustill.models.loading import load_network
from robustill.runs.directory import RunDirectory
from robustill.training import loop as module
from robustill.training.averaging import SWA
from robustill.training.loop import _Loop, train
from robustill.training.step import Step


def trained(run: Path, **changes: object) -> Path:
    return train(small_config(**changes), run, progress=False).run


def extra_file(folder: Path, count: int = 50, seed: int = 0) -> str:
    """Generated digits, as the field stores them: image [N,H,W,C] and label."""
    drawn = np.random.default_rng(seed)
    images = drawn.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    np.savez(folder / f"extra-{seed}.npz", image=images, label=drawn.integers(0, 10, count))
    return str(folder / f"extra-{seed}.npz")


@pytest.mark.parametrize(
    "change",
    [
        {"optim": {"awp": 0.01, "swa": 0.0, "ema": 0.9, "epochs": 3}},
        {"data": {"cutmix": 0.7, "augmentation": ["cutout", "randaugment"]}, "optim": {"label_smoothing": 0.1}},
        {
            "data": {"extra": "extra.npz", "extra_share": 0.6, "augmentation": ["shift"], "cutmix": 0.5},
            "optim": {"swa": 0.0, "accumulate": 2},
        },
        pytest.param({"optim": {"label_smoothing": 0.1, "freeze": ["conv1", "layer1"]}}, marks=pytest.mark.slow),
        {"attack": {"first_eps": 0.0, "first_steps": 0, "steps": 2}, "optim": {"accumulate": 2, "swa": 0.5}},
    ],
)
def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict) -> None:
    if "extra" in change.get("data", {}):
        change = {**change, "data": {**change["data"], "extra": extra_file(tmp_path)}}
    whole = trained(tmp_path / "whole", **change)
    original, last = module._Loop._train_epoch, change.get("optim", {}).get("epochs", 2) - 1

    def stops(self: module._Loop, bar: object):  # type: ignore[no-untyped-def]
        if self.epochs_done == last:
            raise KeyboardInterrupt
        return original(self, bar)  # type: ignore[arg-type]

    monkeypatch.setattr(module._Loop, "_train_epoch", stops)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", **change)
    monkeypatch.undo()
    run = trained(tmp_path / "run", **change)
    assert lines(run) == lines(whole)
    kinds = ["last", *(f"last-{kind}" for kind in ("ema", "swa") if kind in change.get("optim", {}))]
    assert [weights(run, what) for what in kinds] == [weights(whole, what) for what in kinds]
    # The technique does something.
    assert lines(run) != lines(trained(tmp_path / "plain", optim={"epochs": last + 1}))


def test_swa_is_the_mean_of_the_last_epochs(tmp_path: Path) -> None:
    settings = {"epochs": 4, "swa": 0.5}
    run = RunDirectory(trained(tmp_path / "run", optim=settings, keep_every=1))
    plain = RunDirectory(trained(tmp_path / "plain", optim={"epochs": 4}))
    assert weights(run.path) == weights(plain.path)
    looked = ["swa_validation_robust_accuracy" in line for line in run.metrics()]
    assert looked == [False, False, True, True]
    third, fourth = (run.checkpoints.weights(f"epoch-{epoch}")[0] for epoch in (3, 4))
    mean = run.checkpoints.weights("last-swa")[0]
    student = load_network(f"run:{run.path}@last-swa").module
    for name, _ in student.named_parameters():
        torch.testing.assert_close(mean[name], (third[name] + fourth[name]) / 2)
    # The statistics are those of the mean itself, on the images that were trained on.
    name = next(name for name in mean if name.endswith("running_mean"))
    assert not torch.allclose(mean[name], (third[name] + fourth[name]) / 2, atol=1e-6)
    robust = [line.get("swa_validation_robust_accuracy", -1.0) for line in run.metrics()]
    assert run.checkpoints.pointed("best-swa") == robust.index(max(robust)) + 1


@pytest.mark.parametrize(("begin", "first"), [(0.29, 30), (0.295, 30), (0.3, 31)])
def test_swa_begins_after_whole_epochs(monkeypatch: pytest.MonkeyPatch, begin: float, first: int) -> None:
    monkeypatch.setattr("robustill.training.loop.estimate_statistics", lambda *_, **__: None)
    config = small_config(optim={"swa": begin, "epochs": 100})
    for done in range(100):
        swa = SWA(nn.Linear(1, 1))
        batches = SimpleNamespace(whole=lambda _: [])
        loop = SimpleNamespace(config=config, swa=swa, epochs_done=done, student=nn.Linear(1, 1), batches=batches)
        _Loop._update_swa(loop)  # type: ignore[arg-type]
        assert swa.count == int(done + 1 >= first)


@pytest.mark.slow
def test_an_evaluation_includes_swa_where_it_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def names(run: Path) -> list[str]:
        settings = {"progress": False, "suite": "pgd", "num_images": 2, "overrides": ["--compute.threads", "1"]}
        return [folder.name.split("-pgd")[0] for folder in evaluate_run(run, **settings)]  # type: ignore[arg-type]

    run = trained(tmp_path / "run", optim={"epochs": 2, "swa": 0.5})
    assert names(run) == ["test-best", "test-last", "test-best-swa", "test-last-swa"]
    robust = iter([0.3, 0.2])
    monkeypatch.setattr("robustill.training.validation.validation_accuracy", lambda *_, **__: (0.5, next(robust)))
    stopped = trained(tmp_path / "stopped", optim={"epochs": 3, "swa": 0.9}, validation={"patience": 1})
    assert names(stopped) == ["test-best", "test-last"]


def test_eps_and_steps_grow_epoch_by_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    attack = Step._attack

    def watched(self: Step, batch: Batch, *rest: object) -> torch.Tensor:
        found: torch.Tensor = attack(self, batch, *rest)  # type: ignore[arg-type]
        seen.append((batch.epoch, self.steps, (found - batch.x).abs().max().item()))
        return found

    monkeypatch.setattr(Step, "_attack", watched)
    settings = {"steps": 5, "step_size": 0.1, "first_eps": "0/255", "first_steps": 1, "grow": 0.6}
    run = trained(tmp_path / "run", attack=settings, optim={"epochs": 5}, validation={"every": 5})
    assert [(line["eps"], line["attack_steps"]) for line in lines(run)] == [(0.0, 1), (0.05, 3), *[(0.1, 5)] * 3]
    for epoch, steps, furthest in seen:
        assert steps == (1, 3, 5, 5, 5)[epoch]
        assert furthest == pytest.approx((0.0, 0.05, 0.1, 0.1, 0.1)[epoch], abs=1e-6)
    # A growth that is over at once is none.
    whole = trained(tmp_path / "whole", attack={**settings, "grow": 0.1}, optim={"epochs": 2})
    assert weights(whole) == weights(trained(tmp_path / "plain", attack={"steps": 5, "step_size": 0.1}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"attack": {"first_eps": "200/255"}},
            "attack.first_eps is 0.784314, expected at most the 0.1 that it grows to",
        ),
        ({"attack": {"first_steps": 9, "steps": 3}}, "attack.first_steps is 9, expected at most the 3"),
        ({"attack": {"noise": 2.0, "start": "clean"}}, "attack.noise replaces attack.start: leave one of the two out"),
        ({"attack": {"noise": 2.0, "first_eps": 0.0}}, "attack.noise replaces attack.first_eps: leave one"),
        ({"attack": {"noise": 2.0}, "threat": {"norm": "l1"}}, "attack.noise is for linf and l2"),
        ({"data": {"cutmix": 0.5}, "method": {"name": "mart"}}, "method mart is defined for images of one class"),
        (
            {"data": {"cutmix": 1.0}, "method": {"name": "igdm", "base": "fair_ard"}, "teachers": ["run:a@best"]},
            "method igdm is defined for images of one class: data.cutmix must be 0",
        ),
        (
            {"data": {"extra": "nowhere.npz", "extra_share": 0.01}},
            "data.extra_share is 0.01: a batch of 20 would have 20 images of the data set; give a share that",
        ),
        ({"data": {"extra_share": 1}}, "data.extra_share is 1, expected less than 1"),
        ({"data": {"cutmix": 1.5}}, "data.cutmix is 1.5, expected"),
        ({"optim": {"label_smoothing": 1}}, "optim.label_smoothing is 1, expected less than 1"),
        (
            {"optim": {"accumulate": 2}, "method": {"name": "saad"}, "teachers": ["run:a@best"]},
            "method saad compares the images of a whole batch: optim.accumulate must be 1",
        ),
        (
            {
                "optim": {"accumulate": 2},
                "method": {"name": "igdm", "base": "saad"},
                "teachers": ["run:a@best"],
            },
            "method igdm compares the images of a whole batch",
        ),
        (
            {"optim": {"accumulate": 2}, "method": {"name": "dkl", "gamma": 0.2}},
            "method dkl compares the images of a whole batch: optim.accumulate must be 1",
        ),
        (
            {"method": {"name": "fair_ard", "base": "mtard"}, "teachers": ["run:a@best"]},
            "method fair_ard needs a teacher of role natural",
        ),
    ],
)
def test_an_invalid_setting_is_an_error_of_one_line(change: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        small_config(**change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{}, {"threat": {"norm": "l2", "eps": 0.5}, "optim": {"awp": 0.05}}])
def test_accumulation_gives_the_weights_of_whole_batches(tmp_path: Path, change: dict) -> None:
    networks = []
    for parts in (1, 3):
        values = {**change, "optim": {**change.get("optim", {}), "accumulate": parts, "learning_rate": 0.01}}
        config = make_config({**small_values(**values), "model": {"name": "lenet"}})
        run = train(config, tmp_path / str(parts), progress=False).run
        networks.append(RunDirectory(run).checkpoints.weights("last")[0])
    for name, value in networks[0].items():
        torch.testing.assert_close(networks[1][name], value, rtol=1e-4, atol=1e-5)


def test_frozen_parts_do_not_change_and_the_rest_does(tmp_path: Path) -> None:
    first = RunDirectory(trained(tmp_path / "first", seed=3))
    change = {
        "optim": {"freeze": ["conv1", "bn1", "layer1"], "ema": 0.5, "swa": 0.0},
        "initial": f"run:{first.path}@last",
    }
    run = RunDirectory(trained(tmp_path / "run", **change))
    before = first.checkpoints.weights("last")[0]
    for what in ("last", "last-ema", "last-swa"):
        after = run.checkpoints.weights(what)[0]
        for name, value in after.items():
            stays = name.split(".")[0] in ("conv1", "bn1", "layer1", "normalize")
            assert torch.equal(value, before[name]) == stays, name


def test_initial_weights_may_come_from_a_file(tmp_path: Path) -> None:
    first = trained(tmp_path / "first", seed=3)
    file = next((first / "checkpoints" / "epoch-0002").glob("model.safetensors"))
    one = trained(tmp_path / "one", initial=str(file))
    two = trained(tmp_path / "two", initial=f"run:{first}@last")
    assert weights(one) == weights(two) != weights(trained(tmp_path / "plain"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optim": {"freeze": ["conv2"]}}, "the student has no part 'conv2' to freeze: did you mean conv1"),
        ({"optim": {"freeze": [""]}}, "the student has no part '' to freeze"),
        (
            {"optim": {"freeze": ["conv1", "bn1", "layer1", "layer2", "layer3", "linear"]}},
            "every weight of the student is frozen",
        ),
        ({"model": {"width": 4}, "initial": "run:FIRST@last"}, "which does not fit the student resnet8"),
        ({"initial": "run:nowhere@best"}, "nowhere is no run directory"),
        ({"data": {"extra": "nowhere.npz"}}, "nowhere.npz not found"),
    ],
)
def test_a_refused_run_leaves_no_directory(tmp_path: Path, change: dict, message: str) -> None:
    if "FIRST" in change.get("initial", ""):
        change = {**change, "initial": change["initial"].replace("FIRST", str(trained(tmp_path / "first")))}
    with pytest.raises(RobustillError) as caught:
        trained(tmp_path / "run", **change)
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def probabilities(logits: torch.Tensor) -> torch.Tensor:
    return logits.double().softmax(dim=1)


def test_label_smoothing_changes_the_loss_not_the_attack() -> None:
    scene_ = scene()
    plain, batch = scene_.batch, replace(scene_.batch, smoothing=0.2)
    student, K = scene_.student, CLASSES
    label = torch.eye(K, dtype=torch.float64)[batch.y]
    smooth = 0.8 * label + 0.2 / K
    log_p = torch.log(probabilities(student(scene_.x_adv)))
    at = build_method("at")
    loss = at.outer(batch, scene_.x_adv, student, scene_.robust).loss
    torch.testing.assert_close(loss.double(), -(smooth * log_p).sum(dim=1), rtol=1e-5, atol=1e-6)
    inner = at.inner(batch, student, scene_.robust)
    assert inner is not None
    torch.testing.assert_close(inner(scene_.x_adv).double(), -(label * log_p).sum(dim=1), rtol=1e-5, atol=1e-6)
    akd = build_method("akd", alpha=0.3)
    target = 0.3 * probabilities(scene_.robust(scene_.x_adv)) + 0.7 * smooth
    loss = akd.outer(batch, scene_.x_adv, student, scene_.robust).loss
    torch.testing.assert_close(loss.double(), -(target * log_p).sum(dim=1), rtol=1e-5, atol=1e-6)
    assert torch.equal(plain.target(K), plain.y)


@pytest.mark.parametrize(
    ("name", "mixed"),
    [(name, mixed) for name, method in METHODS.items() for mixed in (False, True)[: 1 if method.single_label else 2]],
)
def test_every_method_uses_smoothed_and_mixed_labels(name: str, mixed: bool) -> None:
    scene_, method = scene(), build_method(name)
    method.set_up(lambda *_, **__: tiny_network(7, batchnorm=False))
    teacher = scene_.teachers if len(method.roles) == 2 else scene_.robust
    if mixed:
        shown = F.one_hot(scene_.batch.y, CLASSES).float()
        changed = replace(scene_.batch, mixed=0.6 * shown + 0.4 * shown.roll(1, dims=1))
    else:
        changed = replace(scene_.batch, smoothing=0.3)
    one, two = (method.outer(batch, scene_.x_adv, scene_.student, teacher).loss for batch in (scene_.batch, changed))
    assert two.isfinite().all()
    takes = name in (
        *("clean", "at", "trades", "mart", "dkl", "sgls", "adr", "te", "rebat", "lbgat", "hat"),
        *("kd", "akd", "iad2", "kdswa", "peerad"),
    )
    trusts = mixed and name in ("iad", "iad2", "adaiad")
    # Where the loss takes no label, a smoothed one changes nothing.
    assert torch.equal(one, two) != (takes or trusts)
    # A mixture of one class alone is that class.
    if mixed:
        certain = replace(scene_.batch, mixed=shown)
        three = method.outer(certain, scene_.x_adv, scene_.student, teacher).loss
        torch.testing.assert_close(three, one, rtol=1e-5, atol=1e-6)


def watched_batches(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    seen: list[Batch] = []
    parts = Step.parts

    def watched(self: Step, batch: Batch, *rest: object):  # type: ignore[no-untyped-def]
        seen.append(batch)
        return parts(self, batch, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Step, "parts", watched)
    return seen


def test_batches_are_mixed_as_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched_batches(monkeypatch)
    data = {"extra": extra_file(tmp_path), "extra_share": 0.7, "label_noise": 0.5}
    # Two epochs of 40 images, that is of two steps of 20.
    run = trained(tmp_path / "run", data=data, optim={"accumulate": 2})
    plain, N = seen.copy(), len(load("digits", split="train"))
    assert [int((batch.index >= N).sum()) for batch in plain] == [14] * 4
    with np.load(data["extra"]) as file:  # type: ignore[call-overload]
        images, labels = torch.from_numpy(file["image"]), torch.from_numpy(file["label"])
    page = RunDirectory(run).read_json("split.json")
    assert page is not None
    flipped = torch.tensor(page["flipped"])
    for batch in plain:
        extra = batch.index >= N
        rows = batch.index[extra] - N
        assert torch.equal((255 * batch.x[extra, 0]).round().byte(), images[rows, ..., 0])
        # Noise falls on the data set's own labels alone.
        assert torch.equal(batch.y[extra], labels[rows])
        true = load("digits", split="train").labels[batch.index[~extra]]
        assert torch.equal(batch.y[~extra] != true, torch.isin(batch.index[~extra], flipped))
    assert page["extra"]["images"] == 50

    # CutMix mixes these very images, with one another and with the extra ones.
    seen.clear()
    trained(tmp_path / "cutmix", data={**data, "cutmix": 0.5}, optim={"accumulate": 2})
    for batch, before in zip(seen, plain, strict=True):
        assert torch.equal(batch.index, before.index)
        assert batch.mixed is not None
        assert torch.equal(batch.mixed.argmax(dim=1), batch.y)
        own = (batch.x == before.x).flatten(1).float().mean(dim=1)
        neighbour = before.y.roll(1)
        shown = batch.mixed.gather(1, before.y[:, None])[:, 0]
        # Where two pixels happen to be equal, more than the label's share is: black borders.
        assert (own >= shown - 1e-6)[before.y != neighbour].all()
        expected = shown[:, None] * F.one_hot(before.y, 10) + (1 - shown)[:, None] * F.one_hot(neighbour, 10)
        torch.testing.assert_close(batch.mixed, torch.where((before.y == neighbour)[:, None], batch.mixed, expected))
        assert 0 < int((own < 1).sum()) < 20


def test_a_run_resumes_only_with_the_same_extra_images(tmp_path: Path) -> None:
    file = extra_file(tmp_path)
    run = trained(tmp_path / "run", data={"extra": file})
    assert load_network(f"run:{run}").trained == "at linf:0.1, 2 epochs, extra images"
    before = weights(run)
    assert weights(trained(run, data={"extra": file})) == before
    Path(extra_file(tmp_path, seed=1)).replace(file)
    with pytest.raises(RunError, match=r"began with other images .extra differs from split\.json"):
        trained(run, data={"extra": file})
    for change in ({"extra": file, "extra_share": 0.5}, {"extra": None}, {"extra": file, "cutmix": 0.5}):
        with pytest.raises(RunError, match=r"was made by another configuration: data\.(extra|extra_share|cutmix) is"):
            trained(run, data=change)
    assert weights(run) == before


def test_swa_statistics_come_from_the_training_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, looked = watched_batches(monkeypatch), []
    estimate = module.estimate_statistics

    def watched(model: torch.nn.Module, images: Iterable[torch.Tensor], *, frozen: Sequence[str]) -> None:
        looked.extend(images)
        estimate(model, looked, frozen=frozen)

    monkeypatch.setattr(module, "estimate_statistics", watched)
    trained(tmp_path / "run", data={"extra": extra_file(tmp_path), "cutmix": 0.7}, optim={"swa": 0.5})
    assert len(looked) == 2
    assert all(torch.equal(images, batch.x) for images, batch in zip(looked, seen[2:], strict=True))


@pytest.mark.parametrize(
    "name", ["clean", "at", "trades", "rebat", "kd", "akd", "iad2", "kdswa", "peerad", "lbgat", "hat"]
)
def test_the_loss_of_a_mixed_label_is_the_mixture_of_losses(name: str) -> None:
    # In the first epoch, where IAD-II trusts its teacher whatever the label.
    scene_ = scene(epoch=0)
    method = build_method(name)
    method.set_up(lambda *_, **__: tiny_network(7, batchnorm=False))
    teacher = scene_.teachers if len(method.roles) == 2 else scene_.robust
    one, two = scene_.batch, replace(scene_.batch, y=(scene_.batch.y + 1) % CLASSES)
    share = torch.linspace(0, 1, len(one.y))
    both = [F.one_hot(batch.y, CLASSES).float() for batch in (one, two)]
    mixed = replace(one, mixed=share[:, None] * both[0] + (1 - share)[:, None] * both[1])
    student = scene_.student

    def mixture(value: Callable[[Batch], torch.Tensor]) -> None:
        torch.testing.assert_close(value(mixed), share * value(one) + (1 - share) * value(two), rtol=1e-5, atol=1e-6)

    def inner(batch: Batch) -> torch.Tensor:
        objective = method.inner(batch, student, teacher)
        return torch.zeros(len(batch.y)) if objective is None else objective(scene_.x_adv)

    mixture(lambda batch: method.outer(batch, scene_.x_adv, student, teacher).loss)
    mixture(inner)


class Average(Method):
    """CE(S(x), y) + KL(EMA(x) ‖ S(x)), which needs the average of the student's own weights."""

    roles = ("self",)
    seen: ClassVar[list[tuple[Tensor, Tensor]]] = []

    def inner(self, batch: Batch, student: object, teacher: object) -> None:
        return None

    def outer(self, batch: Batch, x_adv: Tensor, student: nn.Module, teacher: nn.Module) -> Outcome:
        logits, target = student(batch.x), teacher(batch.x)
        self.seen.append((batch.x, target))
        return Outcome(loss=losses.ce(logits, batch.y) + losses.kl(logits, target), logits=logits)


def test_the_role_self_is_the_average_after_the_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Average, "seen", [])
    method = {"name": f"{__name__}:Average"}
    run = trained(tmp_path / "run", method=method, optim={"ema": 0.9, "epochs": 3}, keep_every=1)
    assert len(Average.seen) == 6
    # The first step of the third epoch sees the average at the end of the second.
    x, target = Average.seen[4]
    average = load_network(f"run:{run}@epoch-2-ema").module
    with torch.no_grad():
        torch.testing.assert_close(target, average(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match=r"average of the student's own weights, and optim.ema is null: give the"):
        small_config(method=method)


class BesideAnother(Average):
    """A method with a teacher beside its own average."""

    roles = ("robust", "self")

    def outer(self, batch: Batch, x_adv: Tensor, student: nn.Module, teacher: nn.Module) -> Outcome:
        assert isinstance(teacher, nn.ModuleDict)
        robust = super().outer(batch, x_adv, student, teacher["robust"])
        return replace(robust, loss=robust.loss + losses.kl(robust.logits, teacher["self"](batch.x)))


def test_the_role_self_stands_beside_a_teacher_and_resumes(tmp_path: Path) -> None:
    teacher = trained(tmp_path / "teacher")
    values = {"method": {"name": f"{__name__}:BesideAnother"}, "teachers": [f"run:{teacher}@last"]}
    whole = trained(tmp_path / "whole", **values, optim={"ema": 0.9, "epochs": 2})

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small_config(**values, optim={"ema": 0.9, "epochs": 2}), tmp_path / "run", progress=False, on_epoch=stop)
    run = trained(tmp_path / "run", **values, optim={"ema": 0.9, "epochs": 2})
    assert [weights(run, what) for what in ("last", "last-ema")] == [
        weights(whole, what) for what in ("last", "last-ema")
    ]
