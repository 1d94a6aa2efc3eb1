from __future__ import annotations

import copy
import dataclasses
import io
import sys
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack
from torch import nn

from helpers.evaluation_cases import made_up, placement, trained, viewing
from helpers.small_network import small_network
from robustill.attacks import autoattack as autoattack_module
from robustill.attacks.apgd import APGD
from robustill.attacks.apgd_l1 import SparseAPGD
from robustill.attacks.autoattack import AutoAttackResult, autoattack
from robustill.attacks.square import SharedDraws, Square
from robustill.attacks.state import AutoAttackState
from robustill.core import progress as progress_module
from robustill.core.errors import ConfigError, DataError, ModelError, RunError
from robustill.core.randomness import generator
from robustill.threat import Threat

LINF = Threat(norm="linf", eps=0.12)
SHORT = {"steps": 10, "queries": 60}
STEPS = 50


def of_the_authors(trained, threat, version="standard", attacks=None, queries=200, restarts=1):
    name = {"linf": "Linf", "l2": "L2", "l1": "L1"}[threat.norm]
    suite = AutoAttack(trained.model, norm=name, eps=threat.eps, version=version, attacks=attacks, seed=0)
    suite.square.n_queries = queries
    suite.apgd.n_restarts = suite.fab.n_restarts = restarts
    # Half of the steps, as ours: with all of them some of these tests take more than ten seconds.
    suite.apgd.n_iter = suite.apgd.n_iter_orig = suite.fab.n_iter = STEPS
    suite.apgd_targeted.n_iter = suite.apgd_targeted.n_iter_orig = STEPS
    # The authors' check of the model ends any tracing, such as a measurement of what the tests reach.
    tracing = sys.gettrace()
    _, predicted = suite.run_standard_evaluation(trained.x, trained.y, batch_size=64)
    sys.settrace(tracing)
    trained.model.zero_grad()
    return predicted == trained.y


@pytest.mark.parametrize(
    "threat",
    [
        pytest.param(LINF, id="linf"),
        pytest.param(Threat(norm="l2", eps=0.7), id="l2", marks=pytest.mark.slow),
        pytest.param(Threat(norm="l1", eps=2.0), id="l1", marks=pytest.mark.slow),
    ],
)
def test_the_standard_version_agrees_with_the_authors_code(trained, threat):
    theirs = of_the_authors(trained, threat, restarts=5 if threat.norm == "l1" else 1)
    ours = autoattack(trained.model, trained.x, trained.y, threat, steps=STEPS, queries=200)
    assert 4 < theirs.sum() < 28, "the threat should break some images and not all"
    assert abs(int(ours.robust.sum()) - int(theirs.sum())) <= 1
    assert (ours.robust != theirs).sum() <= 2


@pytest.mark.parametrize(
    "name", ["apgd-ce", "apgd-dlr", "apgd-t", "fab", pytest.param("fab-t", marks=pytest.mark.slow), "square"]
)
def test_each_attack_alone_is_as_strong_as_the_authors(trained, name):
    theirs = of_the_authors(trained, LINF, "custom", [name])
    ours = autoattack(trained.model, trained.x, trained.y, LINF, version=[name], steps=STEPS, queries=200, restarts=1)
    # Square is the noisy one: after few queries its successes depend on the draws.
    assert abs(int(ours.robust.sum()) - int(theirs.sum())) <= (4 if name == "square" else 1)


def test_successes_are_feasible_and_wrong_in_float32(trained):
    result = autoattack(trained.model, trained.x, trained.y, LINF, **SHORT)
    broken = result.broken_by >= 0
    assert broken.any()
    x_adv, x, y = result.x_adv[broken], trained.x[broken], trained.y[broken]
    assert (x_adv - x).abs().max() <= LINF.eps + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    logits = trained.model(x_adv).detach()
    assert (logits.argmax(1) != y).all()
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    torch.testing.assert_close(result.margin[broken], others - logits.gather(1, y[:, None])[:, 0], atol=1e-5, rtol=0)
    assert (result.margin[result.robust] <= 0).all()
    assert torch.equal(result.x_adv[~broken], trained.x[~broken])


def test_the_result_depends_on_no_other_image_or_batch_size(trained):
    whole = autoattack(trained.model, trained.x, trained.y, LINF, **SHORT)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))[:20]
    part = autoattack(trained.model, trained.x[order], trained.y[order], LINF, index=order, batch_size=7, **SHORT)
    assert torch.equal(part.broken_by, whole.broken_by[order])
    torch.testing.assert_close(part.x_adv, whole.x_adv[order], atol=1e-4, rtol=0)


def test_seeds_have_different_starts(trained):
    first, second = (autoattack(trained.model, trained.x, trained.y, LINF, seed=seed, **SHORT) for seed in (0, 1))
    both = (first.broken_by == 0) & (second.broken_by == 0)
    assert (first.x_adv[both] - second.x_adv[both]).abs().max() > 0.01


@pytest.mark.parametrize("calls", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(6, marks=pytest.mark.slow)])
def test_a_killed_run_resumes_to_the_same_result(trained, calls):
    class KilledError(Exception):
        pass

    saved: list[bytes] = []

    def save(state: AutoAttackState) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, **state.arrays())
        saved.append(buffer.getvalue())
        if len(saved) == calls:
            raise KilledError

    settings = {"threat": LINF, "batch_size": 8, **SHORT}
    uninterrupted = autoattack(trained.model, trained.x, trained.y, **settings)
    with pytest.raises(KilledError):
        autoattack(trained.model, trained.x, trained.y, save=save, **settings)
    with np.load(io.BytesIO(saved[-1])) as arrays:
        state = AutoAttackState.from_arrays(arrays)
    assert (state.stages_done > 0).any()
    resumed = autoattack(trained.model, trained.x, trained.y, state=state, **settings)
    assert torch.equal(resumed.broken_by, uninterrupted.broken_by)
    torch.testing.assert_close(resumed.x_adv, uninterrupted.x_adv, atol=1e-4, rtol=0)
    assert sum(resumed.passes) == pytest.approx(sum(uninterrupted.passes), rel=0.02)


def test_a_state_of_other_conditions_is_refused(trained):
    states: list[AutoAttackState] = []
    autoattack(trained.model, trained.x, trained.y, LINF, save=states.append, **SHORT)
    with pytest.raises(RunError, match="seed=0"):
        autoattack(trained.model, trained.x, trained.y, LINF, seed=1, state=states[-1], **SHORT)


@pytest.mark.parametrize(
    "changes", [{"precision": "fast"}, {"index": torch.arange(32).flip(0)}, {"index": torch.arange(32) + 1}]
)
def test_a_state_of_another_precision_or_of_other_ids_is_refused(trained, changes):
    states: list[AutoAttackState] = []
    settings = {"threat": LINF, "version": ["square"], "queries": 5}
    for one, other in (({}, changes), (changes, {})):
        autoattack(trained.model, trained.x, trained.y, **settings, **one, save=states.append)
        autoattack(trained.model, trained.x, trained.y, **settings, **one, state=states[-1])
        (name,) = changes
        with pytest.raises(RunError, match=f"the saved state belongs to .* {name}=") as caught:
            autoattack(trained.model, trained.x, trained.y, **settings, **other, state=states[-1])
        assert "\n" not in str(caught.value)


def test_saved_conditions_are_those_of_earlier_versions(trained):
    states: list[AutoAttackState] = []
    autoattack(trained.model, trained.x[:2], trained.y[:2], LINF, version=["square"], queries=3, save=states.append)
    assert states[-1].conditions == (
        "(Stage(name='square', loss='', variants=1, targeted=False, steps=3, repeats=1, shrinking=False, "
        f"num_classes=10),) {LINF} seed=0 images=2"
    )


@pytest.mark.slow
def test_progress_reports_the_passes_of_robust_images(trained, monkeypatch):
    monkeypatch.setattr(autoattack_module, "_PROGRESS_INTERVAL", 0.0)
    reports: list[tuple[int, int, str]] = []
    weak = Threat(norm="linf", eps=0.0)
    clean = trained.model(trained.x).argmax(1) == trained.y
    x, y = trained.x[clean][:4], trained.y[clean][:4]
    result = autoattack(
        trained.model, x, y, weak, batch_size=2, queries=100, progress=lambda *line: reports.append(line)
    )
    assert result.robust.all()
    # 101 evaluations of APGD forward and backward, for CE and 9 targets; FAB's 9 · 100 · 3; Square's start and queries.
    assert result.passes == (4 * 202, 4 * 1818, 4 * 2700, 4 * 101)
    assert {total for _, total, _ in reports} == {4 * (202 + 1818 + 2700 + 101)}
    assert [done for done, _, _ in reports] == sorted(done for done, _, _ in reports)
    assert reports[-1] == (4 * (202 + 1818 + 2700 + 101),) * 2 + ("square",)
    assert list(dict.fromkeys(name for _, _, name in reports)) == list(result.stages)
    assert all(0 < inside < whole for inside, whole in zip(result.model_seconds, result.seconds, strict=True))


def test_random_numbers_and_target_classes(trained, monkeypatch):
    made = []

    class Recorded(APGD):
        def __init__(self, search, loss, **options):
            super().__init__(search, loss, **options)
            made.append(self)

    monkeypatch.setattr(autoattack_module, "APGD", Recorded)
    ids = torch.arange(32) + 100
    result = autoattack(
        trained.model, trained.x, trained.y, LINF, version=["apgd-ce", "apgd-t"], steps=1, restarts=1, seed=5, index=ids
    )
    assert made[0].targets is None
    logits = trained.model(trained.x)
    # The second attack sees the images that are left.
    left = (logits.argmax(1) == trained.y) & (result.broken_by != 0)
    image, variant = torch.tensor([0, 0, 3, 1]), torch.tensor([0, 8, 2, 0])
    for number, (attack, pending) in enumerate(zip(made, (logits.argmax(1) == trained.y, left), strict=True)):
        places = pending.nonzero()[:, 0][image]
        drawn = [torch.rand(3, generator=each) for each in attack.generators(image, variant)]
        name = ("apgd-ce", "apgd-t")[number]
        own = [generator(5, name, int(ids[i]), int(v)) for i, v in zip(places, variant, strict=True)]
        assert all(torch.equal(a, torch.rand(3, generator=b)) for a, b in zip(drawn, own, strict=True))
    # The largest logit is the label's.
    likeliest = logits[left][image].argsort(dim=1, descending=True)
    assert torch.equal(made[1].targets(image, variant), likeliest[torch.arange(4), variant + 1])


@pytest.mark.parametrize("batch_size", [1, 2])
def test_small_batches(trained, batch_size):
    result = autoattack(
        trained.model, trained.x[:3], trained.y[:3], LINF, version=["apgd-ce"], steps=1, batch_size=batch_size
    )
    assert len(result.robust) == 3


@pytest.mark.parametrize("output", [lambda x: None, lambda x: x.sum(dim=(1, 2, 3)), lambda x: x.flatten(1)[:, :1]])
def test_an_output_that_is_no_logits_is_refused(output):
    x = torch.rand(3, 1, 8, 8)

    def predict(images):
        return images.flatten(1) if len(images) == 2 else output(images)

    with pytest.raises(ModelError, match=r"no tensor \[N,K\] with K of at least 2"):
        autoattack(predict, x, torch.zeros(3, dtype=torch.int64), LINF, batch_size=2, check=False)


def test_a_result_is_printed_in_one_line():
    result = AutoAttackResult(
        robust=torch.tensor([True, False, False, False]),
        broken_by=torch.tensor([-1, 0, -2, 0], dtype=torch.int8),
        stages=("apgd-ce", "square"),
        x_adv=torch.zeros(4, 1, 1, 1),
        margin=torch.zeros(4),
        seconds=(0.0, 0.0),
        model_seconds=(0.0, 0.0),
        passes=(0, 0),
        light=True,
    )
    assert str(result) == "1 of 4 robust; wrong on clean 1; broken by apgd-ce 2, square 0"


def test_networks_compute_in_full_float32(trained):
    seen = set()

    def predict(x):
        seen.add(torch.backends.cudnn.conv.fp32_precision)
        return trained.model(x)

    autoattack(predict, trained.x[:2], trained.y[:2], LINF, version=["apgd-ce"], steps=2)
    assert seen == {"ieee"}


def test_the_model_is_unchanged_afterwards(trained):
    trained.model[0].weight.requires_grad_(False)
    trained.model.train()
    statistics = trained.model[2].bn1.running_mean.clone()
    autoattack(trained.model, trained.x[:8], trained.y[:8], LINF, **SHORT)
    assert all(module.training for module in trained.model.modules())
    assert not trained.model[0].weight.requires_grad
    assert trained.model[4].weight.requires_grad
    assert trained.model[4].weight.grad is None
    assert torch.equal(trained.model[2].bn1.running_mean, statistics)
    trained.model[0].weight.requires_grad_(True)
    trained.model.eval()


def test_a_function_is_attacked_like_the_network_it_calls(trained):
    as_function = autoattack(lambda x: trained.model(x), trained.x, trained.y, LINF, **SHORT)
    as_network = autoattack(trained.model, trained.x, trained.y, LINF, **SHORT)
    assert as_network.light
    assert not as_function.light
    assert (as_function.robust != as_network.robust).sum() <= 1


def test_fast_mode_loses_no_success(trained):
    exact = autoattack(trained.model, trained.x, trained.y, LINF, steps=30, queries=60)
    fast = autoattack(trained.model, trained.x, trained.y, LINF, steps=30, queries=60, precision="fast")
    assert abs(int(exact.robust.sum()) - int(fast.robust.sum())) <= 1
    broken = fast.broken_by >= 0
    assert (trained.model(fast.x_adv[broken]).argmax(1) != trained.y[broken]).all()


def test_undecided_images_have_the_result_of_exact_mode(trained, monkeypatch):
    arguments = {"version": ["apgd-t"], "steps": 10, "batch_size": 27}
    exact = autoattack(trained.model, trained.x, trained.y, LINF, **arguments)
    plain = autoattack(trained.model, trained.x, trained.y, LINF, precision="fast", **arguments)
    monkeypatch.setattr(autoattack_module, "_UNDECIDED_SHARE", torch.inf)
    fast = autoattack(trained.model, trained.x, trained.y, LINF, precision="fast", **arguments)
    standing = exact.robust & fast.robust
    assert standing.any()
    assert torch.equal(fast.margin[standing], exact.margin[standing])
    assert not torch.equal(plain.margin[standing], exact.margin[standing])
    assert (fast.robust <= exact.robust).all()
    assert fast.passes > plain.passes


@pytest.mark.parametrize(("num_classes", "version"), [(2, "standard"), (3, "standard"), (2, "rand"), (5, "plus")])
def test_few_classes(trained, num_classes, version):
    kept = trained.y < num_classes
    model = nn.Sequential(trained.model, Leading(num_classes))
    result = autoattack(model, trained.x[kept], trained.y[kept], LINF, version=version, steps=5, queries=20, restarts=2)
    assert ("apgd-dlr" in result.stages) == (version != "standard" and num_classes > 2)
    assert (result.broken_by >= 0).any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_radius_of_zero_breaks_nothing(norm):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    x = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x[0] = 0
    y = model(x).argmax(1)
    y[2] = (y[2] + 1) % 5
    attacks = ["apgd-ce", "apgd-dlr", "apgd-t", "apgd-ce-t", "fab", "fab-t", "square"]
    for version in (attacks, "standard"):
        result = autoattack(model, x, y, f"{norm}:0", version=version, steps=4, queries=9, restarts=2, targets=2)
        assert result.robust.tolist() == [True, True, False]
        assert torch.equal(result.x_adv, x)


class Leading(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, logits):
        return logits[:, : self.num_classes]


def test_a_random_model_is_attacked_with_averaged_gradients(trained):
    noise = torch.Generator().manual_seed(0)

    def noisy(x):
        return trained.model(x + 0.05 * torch.randn(x.shape, generator=noise))

    result = autoattack(noisy, trained.x[:16], trained.y[:16], LINF, version="rand", steps=5)
    assert result.stages == ("apgd-ce", "apgd-dlr")
    assert (result.broken_by >= 0).any()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"version": "standrad"}, ConfigError, "did you mean standard"),
        ({"version": ["apgdce"]}, ConfigError, "did you mean apgd-ce"),
        ({"precision": "half"}, ConfigError, "known: exact, fast"),
        ({"batch_size": 0}, ConfigError, "batch_size is 0"),
        ({"steps": 0}, ConfigError, "steps is 0"),
        ({"y": torch.full((32,), 10)}, DataError, "0 to 9"),
        ({"y": torch.zeros(3, dtype=torch.int64)}, DataError, "one for each image"),
        ({"x": torch.full((32, 1, 8, 8), torch.nan)}, DataError, "NaN"),
        ({"x": torch.full((32, 1, 8, 8), 255.0)}, DataError, "divide bytes by 255"),
        ({"x": torch.linspace(0, 1.5, 32 * 64).view(32, 1, 8, 8)}, DataError, "divide bytes by 255"),
    ],
)
def test_invalid_arguments_are_refused(trained, change, error, words):
    settings = {"x": trained.x, "y": trained.y, "threat": LINF, **change}
    with pytest.raises(error, match=words):
        autoattack(trained.model, **settings)


class Difference(nn.Module):
    """Each logit is 128 times the difference of two pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(128 * torch.cat([torch.eye(3), -torch.eye(3)], dim=1))

    def forward(self, x):
        return self.linear(x.flatten(1))


def test_undecided_is_relative_to_the_largest_logit():
    # Logits of 100, 99.5, 0, of −64, −64.25, −64.5, and of 1, 0.95, 0: the last is the only one further than 1 %.
    positive = torch.tensor([[100, 99.5, 0], [0, 0, 0], [1, 0.95, 0]]) / 128
    negative = torch.tensor([[0, 0, 0], [64, 64.25, 64.5], [0, 0, 0]]) / 128
    x, y = torch.stack([positive, negative], dim=1)[:, :, None], torch.zeros(3, dtype=torch.int64)
    still = Threat(norm="linf", eps=0.0)
    result = autoattack(Difference(), x, y, still, version=["apgd-ce"], steps=4, restarts=1, precision="fast")
    assert result.robust.all()
    # Forward and backward at five points; near ones are also put to the real model, and attacked again in float32.
    assert result.passes == (5 * (3 * 2 + 2 + 2 * 2),)


def test_parameters_are_frozen_during_the_attack(trained):
    seen = set()

    class Watched(nn.Sequential):
        def forward(self, x):
            seen.add(any(each.requires_grad for each in self.parameters()))
            return super().forward(x)

    autoattack(Watched(trained.model), trained.x[:2], trained.y[:2], LINF, version="rand", steps=1)
    assert seen == {False}


def test_l1_searches_start_in_larger_balls_with_targets(trained, monkeypatch):
    made = []

    def recorded(search, loss, **options):
        made.append(options)
        return SparseAPGD(search, loss, **options)

    monkeypatch.setattr(autoattack_module, "SparseAPGD", recorded)
    small = Threat(norm="l1", eps=0.1)
    clean = trained.model(trained.x).argmax(1) == trained.y
    x, y = trained.x[clean][:1], trained.y[clean][:1]
    autoattack(trained.model, x, y, small, steps=5, queries=1, restarts=1, targets=2)
    likeliest = trained.model(x)[0].argsort(descending=True)
    assert [options["shrinking"] for options in made] == [True, True]
    assert made[0]["targets"] is None
    assert torch.equal(made[1]["targets"](torch.tensor([0, 0]), torch.tensor([1, 0])), likeliest[[2, 1]])


def test_square_records_each_batch_at_its_indices(trained, monkeypatch):
    shared_draws = []

    def recorded(search, **options):
        shared_draws.append(options["draws"])
        return Square(search, **options)

    monkeypatch.setattr(autoattack_module, "Square", recorded)
    large = Threat(norm="linf", eps=0.3)
    settings = {"version": ["square"], "queries": 8, "seed": 3}
    whole, parts = (autoattack(trained.model, trained.x, trained.y, large, batch_size=b, **settings) for b in (64, 5))
    assert (whole.broken_by == 0).sum() > 5
    assert torch.equal(parts.broken_by, whole.broken_by)
    assert torch.equal(parts.x_adv, whole.x_adv)
    torch.testing.assert_close(parts.margin, whole.margin)
    assert torch.equal(shared_draws[0].positions, SharedDraws.draw(8, 1, generator(3, "square", "plan")).positions)


def test_progress_is_reported_every_half_second(trained, monkeypatch):
    now, reported = [100.0], []

    def later():
        now[0] += 0.125
        return now[0]

    monkeypatch.setattr(autoattack_module, "time", SimpleNamespace(perf_counter=later))
    clean = trained.model(trained.x).argmax(1) == trained.y
    still = Threat(norm="linf", eps=0.0)
    autoattack(
        trained.model,
        trained.x[clean][:2],
        trained.y[clean][:2],
        still,
        version=["apgd-ce"],
        steps=20,
        restarts=1,
        progress=lambda *line: reported.append(now[0]),
    )
    # The clock is read at each pass, and once more at a report.
    assert len(reported) > 2
    assert {after - before for before, after in pairwise(reported)} == {0.625}


@pytest.mark.parametrize(
    ("progress", "is_terminal", "is_shown"),
    [(None, False, False), (None, True, True), (True, False, True), (False, True, False)],
)
def test_a_bar_is_shown_on_a_terminal_or_if_it_is_asked_for(
    trained, capsys, monkeypatch, progress, is_terminal, is_shown
):
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    monkeypatch.setattr(autoattack_module, "_PROGRESS_INTERVAL", 0.0)
    seconds = iter(range(10**6))
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    clean = trained.model(trained.x).argmax(1) == trained.y
    x, y = trained.x[clean][:2], trained.y[clean][:2]
    autoattack(trained.model, x, y, Threat(norm="linf", eps=0.0), version=["square"], queries=20, progress=progress)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert ("autoattack 100% ·" in printed.err) == is_shown
    assert ("square" in printed.err) == is_shown


def test_a_short_call_shows_no_bar(trained, capsys, monkeypatch):
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=lambda: 5.0))
    autoattack(trained.model, trained.x[:2], trained.y[:2], LINF, version=["square"], queries=20, progress=True)
    assert capsys.readouterr().err == ""


def test_networks_that_view_feature_maps_are_attacked():
    x, y = made_up().read(torch.arange(12)).float() / 255, made_up().labels[:12]
    expected = autoattack(trained(), x, y, LINF, **SHORT)
    network = viewing(trained())
    before = placement(network)
    for predict in (network, network.eval().forward):
        for precision in ("exact", "fast"):
            found = autoattack(predict, x, y, LINF, precision=precision, **SHORT)
            assert (found.robust != expected.robust).sum() <= 1
    assert placement(network) == before
    assert not network._forward_pre_hooks
    assert autoattack(network, x, y, LINF, **SHORT).light


class Residual(nn.Module):
    """A block that adds its input in place, or not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.stem, self.conv, self.linear = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 4)
        self.in_place = in_place

    def forward(self, x):
        x = self.stem(x)
        h = self.conv(x)
        h = h.add_(x) if self.in_place else h + x
        return self.linear(torch.relu(self.conv(h)).mean((2, 3)))


def test_square_is_as_strong_on_networks_that_add_in_place():
    torch.manual_seed(1)
    other, in_place = Residual(False), Residual(True)
    in_place.load_state_dict(other.state_dict())
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y = other(x).argmax(1)
    found = [autoattack(each, x, y, "linf:16/255", version=["square"], queries=100) for each in (other, in_place)]
    torch.testing.assert_close(found[1].margin, found[0].margin, rtol=1e-4, atol=0)


class Product(nn.Module):
    """A network that has a folded copy, but none in bfloat16: it multiplies by a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.matrix = nn.Conv2d(1, 6, 3), nn.Parameter(torch.eye(6)[:, :3])

    def forward(self, x):
        return self.conv(x).mean((2, 3)) @ self.matrix


def test_a_network_without_a_copy_in_bfloat16_is_attacked_in_fast_mode():
    torch.manual_seed(0)
    x = made_up().read(torch.arange(12)).float() / 255
    network = Product()
    y = network(x).argmax(dim=1)
    exact, fast = (autoattack(network, x, y, LINF, precision=each, **SHORT) for each in ("exact", "fast"))
    assert fast.light
    assert (exact.robust != fast.robust).sum() <= 1


# --- a state belongs to its images, labels and network


SHORT_RUN = {"version": ["apgd-ce", "square"], "steps": 3, "queries": 10, "batch_size": 8}


@pytest.fixture(scope="module")
def half_done(trained):
    """A state after some of the images, as it is read from disk, and the result of the whole run."""
    states: list[AutoAttackState] = []

    def save(state: AutoAttackState) -> None:
        states.append(AutoAttackState.from_arrays({key: np.array(value) for key, value in state.arrays().items()}))

    result = autoattack(trained.model, trained.x, trained.y, LINF, save=save, **SHORT_RUN)
    assert (states[1].stages_done > 0).any()
    assert (states[1].broken_by >= 0).any()
    return states[1], result


def resume(half_done, model, x, y, **changes):
    return autoattack(model, x, y, LINF, state=dataclasses.replace(copy.deepcopy(half_done[0]), **changes), **SHORT_RUN)


@pytest.mark.parametrize("changes", [{}, {"fingerprint": None}, {"fingerprint": {"format": 2}}])
def test_a_state_of_the_same_network_is_resumed(trained, half_done, changes):
    for model in (trained.model, lambda x: trained.model(x)):
        result = resume(half_done, model, trained.x, trained.y, **changes)
        assert torch.equal(result.broken_by, half_done[1].broken_by)
        assert torch.equal(result.x_adv, half_done[1].x_adv)


def rounded(network):
    return lambda x: network((x * 30).round() / 30)


def straight_through(network):
    return lambda x: network(x + ((x * 30).round() / 30 - x).detach())


@pytest.mark.parametrize("change", [rounded, straight_through, lambda network: small_network(seed=4)])
def test_a_state_of_another_network_is_refused(trained, half_done, change):
    with pytest.raises(RunError, match=r"belongs to another network or to other labels \(its logits on") as caught:
        resume(half_done, change(trained.model), trained.x, trained.y)
    assert "\n" not in str(caught.value)


def test_a_state_of_before_the_gradient_was_mended_is_refused(trained):
    states: list[AutoAttackState] = []
    autoattack(rounded(trained.model), trained.x, trained.y, LINF, save=states.append, **SHORT_RUN)
    with pytest.raises(RunError, match="its input gradients on fixed images differ"):
        resume(states, straight_through(trained.model), trained.x, trained.y)


def test_an_earlier_state_of_another_network_is_refused_by_its_predictions(trained, half_done):
    with pytest.raises(RunError, match=r"the predictions on .* of its clean images differ"):
        resume(half_done, small_network(seed=4), trained.x, trained.y, fingerprint=None)


@pytest.mark.parametrize("number", [1, 32])
def test_a_state_of_other_labels_is_refused(trained, half_done, number):
    labels = trained.y.clone()
    labels[:number] = (labels[:number] + 1) % 10
    with pytest.raises(RunError, match=f"the predictions on {number} of its clean images differ"):
        resume(half_done, trained.model, trained.x, labels)


@pytest.mark.parametrize(
    "change", [lambda x: x.flip(0), lambda x: 0.99 * x, lambda x: torch.cat([x[:-1], x[:1]]), lambda x: x[:, :, :7]]
)
def test_a_state_of_other_images_is_refused(trained, half_done, change):
    def network(x):
        return trained.model(nn.functional.pad(x, (0, 0, 0, 8 - x.shape[2])))

    with pytest.raises(RunError, match=r"(belongs to other images|holds images of shape)") as caught:
        resume(half_done, network, change(trained.x), trained.y)
    assert "\n" not in str(caught.value)


def test_a_success_outside_the_threat_is_refused(trained, half_done):
    x_adv = half_done[0].x_adv.clone()
    row = int((half_done[0].broken_by >= 0).nonzero()[0])
    x_adv[row] = 1 - x_adv[row]
    with pytest.raises(RunError, match=r"other images \(1 of 32 are not those"):
        resume(half_done, trained.model, trained.x, trained.y, x_adv=x_adv)


def test_a_randomised_network_is_resumed_with_a_warning(trained):
    def random(x):
        return trained.model(x + 0.01 * torch.randn_like(x))

    states: list[AutoAttackState] = []
    autoattack(random, trained.x, trained.y, LINF, save=states.append, **SHORT_RUN)
    with pytest.warns(UserWarning, match="draws random numbers: only its weights were compared"):
        resume(states, random, trained.x, trained.y)
    with pytest.raises(RunError, match="only one of the two draws random numbers"):
        resume(states, trained.model, trained.x, trained.y)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda x: x / 255, "no value of x is above 0.00392, so the images are nearly black: were they divided"),
        (lambda x: 0 * x, "every value of x is 0: look at how the images were read"),
        (lambda x: 0 * x + 1, "every value of x is 1: look at how"),
    ],
)
def test_images_that_nobody_means_are_said(trained, change, line):
    with pytest.warns(UserWarning, match=line) as caught:
        autoattack(trained.model, change(trained.x), trained.y, LINF, version=["square"], queries=1)
    assert len(caught) == 1
    assert caught[0].filename == __file__
