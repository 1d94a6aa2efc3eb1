from __future__ import annotations

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

from robustill.attacks.apgd import APGD, LOSSES, dlr_targeted
from robustill.attacks.apgd_l1 import SparseAPGD
from robustill.attacks.pool import run_pool
from robustill.attacks.search import Search
from robustill.core.randomness import gaussian, generator
from robustill.threat import Threat

WEIGHT = torch.randn(2, 48, generator=torch.Generator().manual_seed(0))
X = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2


def linear(x):
    """Two logits; with every label 0, class 1 is what the attack wants."""
    return x.flatten(1) @ WEIGHT.T


def generators(image, variant):
    return [generator(0, "apgd", int(i), int(v)) for i, v in zip(image, variant, strict=True)]


def largest_margin(threat):
    """The largest margin of class 1 inside a ball that meets no bound of [0,1]: margin(x) + eps · dual norm."""
    direction = WEIGHT[1] - WEIGHT[0]
    dual = {"linf": direction.abs().sum(), "l2": direction.norm(), "l1": direction.abs().max()}[threat.norm]
    return X.flatten(1) @ direction + threat.eps * dual


@pytest.mark.parametrize("threat", [Threat(norm="linf", eps=0.05), Threat(norm="l2", eps=0.15)], ids=str)
def test_apgd_solves_a_linear_model(threat):
    search = Search(lambda x: linear(x) + torch.tensor([1000.0, 0.0]), threat)
    attack = APGD(
        search, "ce-targeted", steps=40, generators=generators, targets=lambda image, variant: torch.ones_like(image)
    )
    found = run_attack(attack, search)
    torch.testing.assert_close(found.margin + 1000, largest_margin(threat), atol=2e-3, rtol=0)


@pytest.mark.parametrize("shrinking", [True, False])
def test_sparse_apgd_nearly_solves_a_linear_model(shrinking):
    # The authors' ascent stops as ours does, when two pixels share the perturbation: at 90 % of what one would gain.
    threat = Threat(norm="l1", eps=0.15)
    search = Search(lambda x: linear(x) + torch.tensor([1000.0, 0.0]), threat)
    attack = SparseAPGD(
        search,
        "ce-targeted",
        steps=100,
        generators=generators,
        targets=lambda image, variant: image * 0 + 1,
        shrinking=shrinking,
    )
    gained = run_attack(attack, search).margin + 1000 - largest_margin(Threat(norm="l1", eps=0))
    possible = largest_margin(threat) - largest_margin(Threat(norm="l1", eps=0))
    assert (gained > 0.7 * possible).all()
    assert (gained <= possible + 1e-3).all(), "points of the larger balls do not count"


def run_attack(attack, search):
    y = torch.zeros(len(X), dtype=torch.int64)
    return run_pool(attack, search, X, y, num_variants=1, batch_size=4, on_decided=lambda images, found: None)


def test_targeted_dlr_matches_the_authors():
    logits = torch.randn(20, 7, generator=torch.Generator().manual_seed(0))
    y, target = torch.arange(20) % 7, (torch.arange(20) + 3) % 7
    theirs = APGDAttack_targeted(None, eps=0.1)
    theirs.y_target = target
    torch.testing.assert_close(dlr_targeted(logits, y, target), theirs.dlr_loss_targeted(logits, y))
    torch.testing.assert_close(LOSSES["ce-targeted"](logits, y, target), theirs.ce_loss_targeted(logits, y))


def test_checkpoints_of_a_hundred_steps():
    attack = APGD(Search(linear, Threat(norm="linf", eps=0.1)), "ce", steps=100, generators=generators)
    due = attack.windows.nonzero().squeeze(1).tolist()
    # 22 steps, then three fewer each time, but never fewer than six.
    assert due == [22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize("steps", [1, 4, 5, 10, 33, 50])
def test_checkpoints_of_few_steps_match_the_authors(steps):
    theirs = APGDAttack(linear, n_iter=steps, norm="Linf", eps=0.1, device="cpu")
    theirs.init_hyperparam(X)
    due, since, window = [], 0, theirs.n_iter_2
    for step in range(1, steps + 1):
        since += 1
        if since == window:
            due.append(step)
            since, window = 0, max(window - theirs.size_decr, theirs.n_iter_min)
    attack = APGD(Search(linear, Threat(norm="linf", eps=0.1)), "ce", steps=steps, generators=generators)
    assert attack.windows.nonzero().squeeze(1).tolist() == due


@pytest.mark.parametrize("loss", ["dlr", "ce"])
@pytest.mark.parametrize(
    ("threat", "name"), [(Threat(norm="linf", eps=0.12), "Linf"), (Threat(norm="l2", eps=0.7), "L2")]
)
def test_every_step_from_one_start_matches_the_authors(trained, threat, name, loss):
    x, y = trained.x[:8], trained.y[:8]
    attack = APGD(Search(trained.model, threat), loss, steps=40, generators=generators)
    rows = attack.start(torch.arange(8), torch.zeros(8, dtype=torch.int64), x, y)
    theirs = APGDAttack(trained.model, n_iter=40, norm=name, eps=threat.eps, loss=loss, device="cpu")
    theirs.init_hyperparam(x)
    best, _, best_loss, _ = theirs.attack_single_run(x, y, x_init=rows.x_adv.clone())
    for _ in range(attack.length):
        attack.advance(rows)
        rows.age += 1
    torch.testing.assert_close(rows.best, best, atol=1e-5, rtol=0)
    found, expected = rows.best_loss, best_loss
    if loss == "dlr":
        # A quotient: where the largest logits nearly tie, its denominator vanishes, and float32's rounding of a point
        # (4e-7) may move a loss of 750 by one. Times the denominator, it is as exact as the logits.
        largest = trained.model(best).sort(dim=1, descending=True).values
        found, expected = ((largest[:, 0] - largest[:, 2]) * each for each in (found, expected))
    torch.testing.assert_close(found, expected, atol=5e-4, rtol=0)


@pytest.mark.parametrize("shrinking", [False, True])
def test_every_sparse_step_from_one_start_matches_the_authors(trained, shrinking, monkeypatch):
    x, y, threat, steps = trained.x, trained.y, Threat(norm="l1", eps=2.0), 53
    attack = SparseAPGD(Search(trained.model, threat), "ce", steps=steps, generators=generators, shrinking=shrinking)
    image = torch.arange(len(x))
    noise = gaussian(x, generators(image, image * 0))
    rows = attack.start(image, image * 0, x, y)
    theirs = APGDAttack(trained.model, n_iter=steps, norm="L1", eps=threat.eps, loss="ce", device="cpu")
    theirs.init_hyperparam(x)
    with monkeypatch.context() as patched:
        for name in ("randn", "randn_like"):
            patched.setattr(torch, name, lambda *_: noise)
        if shrinking:
            # The radii of the paper, with 30 %, 30 % and 40 % of the steps.
            _, _, best_loss, _ = theirs.decr_eps_pgd(x, y, [6.0, 4.0, 2.0], [16, 16, 21])
        else:
            _, _, best_loss, _ = theirs.attack_single_run(x, y)
    for age in range(attack.length):
        candidates = attack.advance(rows).candidates
        assert not (shrinking and age < 34 and candidates.any()), "points of the larger balls do not count"
        rows.age += 1
    # Whether a pixel counts as moved, which sets how many the next steps move, can hang on the last bit of a rounding.
    same = torch.isclose(rows.best_loss, best_loss, atol=1e-3, rtol=1e-3)
    assert same.sum() >= 26, "of 32 images"


@pytest.mark.parametrize("threat", [Threat(norm="linf", eps=0.05), Threat(norm="l2", eps=0.15)], ids=str)
def test_starts_lie_on_the_sphere_in_any_direction(threat):
    x = torch.full((200, 3, 4, 4), 0.5)
    image = torch.arange(200)
    attack = APGD(Search(linear, threat), "ce", steps=1, generators=generators)
    delta = attack.start(image, image * 0, x, image * 0).x_adv - x
    torch.testing.assert_close(threat.distance(x + delta, x), torch.full((200,), threat.eps), rtol=1e-5, atol=1e-6)
    # Symmetric about x: a mean over n pixels is within 5/sqrt(n) of their size from 0.
    assert delta.mean().abs() < 5 * delta.std() / delta.numel() ** 0.5
    assert len({tuple(each.flatten().tolist()) for each in delta}) == 200


@pytest.mark.parametrize(
    ("rises", "halved", "improved", "expected"),
    [
        (16, True, True, True),  # 16 of 22 steps raised the loss, no more than 75 %
        (17, True, True, False),
        (17, True, False, False),  # no better, but with a new step size
        (17, False, True, False),
        (17, False, False, True),  # no better, with the old one
    ],
)
def test_the_step_is_halved_by_the_papers_two_conditions(rises, halved, improved, expected):
    threat = Threat(norm="linf", eps=0.1)
    attack, image = APGD(Search(linear, threat), "ce", steps=100, generators=generators), torch.arange(2)
    rows = attack.start(image, image * 0, X[:2], image * 0)
    rows.age += 22
    rows.num_rises += rises
    rows.halved[:] = halved
    rows.checked_loss = torch.zeros(2)
    rows.best_loss = torch.full((2,), 1.0 if improved else 0.0)
    rows.best = rows.x_adv + 0.01
    before = rows.x_adv.clone()
    attack._check_step_size(rows)
    torch.testing.assert_close(rows.step_size, torch.full((2,), 0.1 if expected else 0.2))
    assert torch.equal(rows.x_adv, rows.best if expected else before)
    assert rows.halved.tolist() == [expected] * 2
    assert rows.num_rises.tolist() == [0, 0]
    assert torch.equal(rows.checked_loss, rows.best_loss)
    rows.age += 1
    rows.num_rises += 1
    attack._check_step_size(rows)
    assert rows.num_rises.tolist() == [1, 1], "no check is due"


def test_logits_that_tie_give_a_finite_targeted_dlr():
    zero = torch.tensor([0])
    assert dlr_targeted(torch.zeros(1, 5), zero, zero + 1).tolist() == [0.0]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_ascents_of_different_ages_share_a_batch(trained, norm):
    attack = APGD(Search(trained.model, Threat(norm=norm, eps=0.1)), "ce", steps=12, generators=generators)
    side_by_side(attack, trained, "x_adv", "best", "best_loss", "step_size", "num_rises", "checked_loss", "halved")


@pytest.mark.parametrize("shrinking", [False, True])
def test_sparse_ascents_of_different_ages_share_a_batch(trained, shrinking):
    attack = SparseAPGD(
        Search(trained.model, Threat(norm="l1", eps=2.0)), "ce", steps=12, generators=generators, shrinking=shrinking
    )
    side_by_side(attack, trained, "x_adv", "best", "best_loss", "step_size", "density", "support")


def side_by_side(attack, trained, *names):

    def begun(image, age):
        rows = attack.start(image, image * 0, trained.x[image], trained.y[image])
        for _ in range(age):
            attack.advance(rows)
            rows.age += 1
        return rows

    ages = [0, 1, 4, 5, 9, 10]
    together = begun(torch.tensor([0]), 0)
    for image, age in enumerate(ages[1:], 1):
        together = together.concat(begun(torch.tensor([image]), age))
    attack.advance(together)
    for image, age in enumerate(ages):
        alone = begun(torch.tensor([image]), age)
        attack.advance(alone)
        for name in names:
            torch.testing.assert_close(getattr(together, name)[image], getattr(alone, name)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_an_ascent_without_a_gradient_stays_finite(norm):
    image, threat = torch.arange(2), Threat(norm=norm, eps=0.2)
    search = Search(lambda z: torch.tensor([[1.0, 0.0]]) + 0 * z.sum((1, 2, 3))[:, None], threat)
    attack = (SparseAPGD if norm == "l1" else APGD)(search, "ce", steps=6, generators=generators)
    rows = attack.start(image, image * 0, X[:2], image * 0)
    for _ in range(attack.length):
        attack.advance(rows)
        rows.age += 1
    assert threat.contains(rows.x_adv, X[:2]).all()


def sparse_ascents(trained, ages):
    attack = SparseAPGD(Search(trained.model, Threat(norm="l1", eps=2.0)), "ce", steps=25, generators=generators)
    image = torch.arange(len(ages))
    rows = attack.start(image, image * 0, trained.x[image], trained.y[image])
    rows.age = torch.tensor(ages)
    return attack, rows


def test_running_ascents_do_not_move_when_others_start(trained):
    attack, rows = sparse_ascents(trained, [0, 3])
    rows.best, before = rows.x.clone(), rows.x_adv.clone()
    attack._enter_ball(rows, torch.tensor([True, False]), torch.ones(2))
    assert torch.equal(rows.x_adv, before)


def test_a_sparser_best_resets_the_step_and_the_point(trained):
    attack, rows = sparse_ascents(trained, [1, 1])
    rows.best = rows.x.clone()
    rows.best[:, 0, 0, :4] = (rows.x[:, 0, 0, :4] + 0.5) % 1
    rows.support, rows.step_size = torch.tensor([5.0, 4.0]), torch.tensor([1.0, 1.0])
    before = rows.x_adv.clone()
    attack._check_sparsity(rows, torch.tensor([True, True]), torch.ones(2))
    assert torch.equal(rows.x_adv[0], rows.best[0])
    assert torch.equal(rows.x_adv[1], before[1])
    assert rows.step_size.tolist() == pytest.approx([2.0, 1 / 1.5])
    assert rows.support.tolist() == [4, 4]


def test_a_short_sparse_search_is_checked_every_step(trained):
    attack, _ = sparse_ascents(trained, [0])
    assert attack.check_due.tolist() == [False] + 25 * [True]


def test_a_best_point_without_perturbation_can_advance(trained):
    attack, rows = sparse_ascents(trained, [1, 1])
    rows.best = rows.x.clone()
    attack._check_sparsity(rows, torch.tensor([True, True]), torch.ones(2))
    assert rows.density.tolist() == [0, 0]
    rows.grad = torch.randn(rows.grad.shape, generator=torch.Generator().manual_seed(0))
    attack.advance(rows)
    assert attack.search.threat.contains(rows.x_adv, rows.x).all()
