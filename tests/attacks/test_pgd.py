import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import nn

from robustill.attacks.pgd import pgd
from robustill.core.contexts import evaluating, frozen
from robustill.core.errors import ConfigError, ModelError
from robustill.core.randomness import generator
from robustill.losses import ce
from robustill.threat import Threat

NORMS = ("linf", "l2", "l1")


def images(shape, seed, spread):
    """Random images; a spread above 1 puts many pixels exactly at 0 and at 1."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return ((x - 0.5) * spread + 0.5).clamp(0, 1)


def slopes(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def optimum(g, x, threat):
    """max g·δ over ‖δ‖ ≤ eps, 0 ≤ x+δ ≤ 1, in float64 for one image: by pixel, by one scalar, or greedily."""
    low, high, eps = -x, 1 - x, threat.eps
    room = np.where(g > 0, high, -low)
    if threat.norm == "linf":
        return float((np.abs(g) * np.minimum(eps, room)).sum())
    if threat.norm == "l2":
        # Optimality conditions: δ = clip(c·g) with the c whose length is eps; with room for everything, c is infinite.
        if np.linalg.norm(room) <= eps:
            return float((np.abs(g) * room).sum())

        def excess(c):
            return np.linalg.norm(np.clip(c * g, low, high)) - eps

        top = 1.0
        while excess(top) < 0:
            top *= 2
        return float((g * np.clip(brentq(excess, 0, top, xtol=1e-15) * g, low, high)).sum())
    gain, left = 0.0, eps
    for i in np.argsort(-np.abs(g)):
        step = min(left, room[i])
        gain, left = gain + step * abs(g[i]), left - step
    return gain


@pytest.mark.parametrize("spread", [0.2, pytest.param(1.0, marks=pytest.mark.slow), 2.0])
@pytest.mark.parametrize(
    ("norm", "eps"),
    [
        *(("linf", eps) for eps in (0.03, 0.3, 1.0)),
        *(("l2", eps) for eps in (0.2, 1.5, 20.0)),
        *(("l1", eps) for eps in (0.1, 4.0, 99.0)),
    ],
)
def test_pgd_reaches_the_optimum_of_a_linear_loss(norm, eps, spread):
    threat = Threat(norm=norm, eps=eps)
    x = images((4, 3, 4, 5), 0, spread)
    g = slopes((4, 3, 4, 5), 1)
    x_adv = pgd(
        lambda z: (g * z).sum(dim=(1, 2, 3)), x, threat, steps=400, step_size=eps / 2, generator=generator(0, norm)
    )
    assert threat.contains(x_adv, x).all()
    for clean, found, slope in zip(x, x_adv, g, strict=True):
        flat_g, flat_x = slope.double().numpy().ravel(), clean.double().numpy().ravel()
        gain = float((slope.double() * (found.double() - clean.double())).sum())
        assert gain == pytest.approx(optimum(flat_g, flat_x, threat), rel=2e-4, abs=1e-5)


def test_one_clean_step_of_the_radius_is_fgsm():
    model = small_network()
    x, y = images((5, 3, 6, 6), 0, 1.0), torch.tensor([0, 1, 2, 3, 0])
    leaf = x.clone().requires_grad_(True)
    ce(model(leaf), y).sum().backward()
    fast = (x + 0.1 * leaf.grad.sign()).clamp(0, 1)
    found = pgd(lambda z: ce(model(z), y), x, Threat(norm="linf", eps=0.1), steps=1, step_size=0.1, start="clean")
    torch.testing.assert_close(found, fast, rtol=0, atol=1e-6)


def small_network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)).eval()


def attacked(norm="linf", seed=0, **settings):
    model = small_network()
    x, y = images((6, 3, 6, 6), 0, 1.0), torch.arange(6) % 4
    settings = {"steps": 5, "step_size": 0.05, "generator": generator(seed, norm), **settings}
    found = pgd(lambda z: ce(model(z), y), x, Threat(norm=norm, eps=0.1), **settings)
    return found, ce(model(found), y).detach(), ce(model(x), y).detach()


@pytest.mark.parametrize("norm", NORMS)
def test_restarts_are_never_worse_and_the_loss_rises(norm):
    # From the same generator, the first start of many is the only start of one.
    losses = [attacked(norm, restarts=restarts, steps=2)[1] for restarts in (1, 2, 4, 8)]
    for fewer, more in itertools.pairwise(losses):
        assert (more >= fewer - 1e-6).all()
    assert (losses[-1] > losses[0] + 1e-6).any()
    _, reached, clean = attacked(norm, steps=20)
    assert (reached > clean).all()


@pytest.mark.parametrize("norm", NORMS)
def test_the_result_is_a_function_of_the_generator(norm):
    torch.manual_seed(0)
    one = attacked(norm, restarts=2)[0]
    torch.manual_seed(1)
    assert torch.equal(attacked(norm, restarts=2)[0], one)
    assert not torch.equal(attacked(norm, seed=1, restarts=2)[0], one)


def test_starts_are_those_of_the_option():
    x = images((3, 1, 8, 8), 0, 0.5)
    threat = Threat(norm="linf", eps=0.1)
    settings = {"steps": 0, "step_size": 0.1}
    clean = pgd(lambda z: z.sum(dim=(1, 2, 3)), x, threat, start="clean", **settings)
    assert torch.equal(clean, x)
    assert clean.data_ptr() != x.data_ptr()
    noise = pgd(lambda z: z.sum(dim=(1, 2, 3)), x, threat, start="gaussian", generator=generator(0), **settings) - x
    assert 0.0008 < noise.std() < 0.0012
    uniform = pgd(lambda z: z.sum(dim=(1, 2, 3)), x, threat, generator=generator(0), **settings)
    assert torch.equal(uniform, threat.start(x, generator(0)))
    tiny = Threat(norm="linf", eps=1e-4)
    noise = pgd(lambda z: z.sum(dim=(1, 2, 3)), x, tiny, start="gaussian", generator=generator(0), **settings)
    assert tiny.contains(noise, x).all()


def test_a_given_start_is_used_and_not_changed():
    x, threat = images((3, 1, 4, 4), 0, 0.5), Threat(norm="linf", eps=0.1)
    start = threat.start(x, generator(0)).requires_grad_(True)
    kept = start.detach().clone()
    found = pgd(lambda z: z.sum(dim=(1, 2, 3)), x, threat, start=start, steps=1, step_size=0.01)
    torch.testing.assert_close(found, (kept + 0.01).minimum(x + 0.1), rtol=0, atol=1e-6)
    unmoved = pgd(lambda z: z.sum(dim=(1, 2, 3)), x, threat, start=start, steps=0, step_size=0.01)
    assert torch.equal(unmoved, kept)
    assert not unmoved.requires_grad
    plain = kept.clone()
    pgd(lambda z: z.sum(dim=(1, 2, 3)), x, threat, start=plain, steps=1, step_size=0.01)
    assert torch.equal(plain, kept)
    assert not plain.requires_grad


@pytest.mark.parametrize("norm", NORMS)
def test_a_constant_loss_returns_the_start(norm):
    x, threat = images((2, 3, 4, 4), 0, 2.0), Threat(norm=norm, eps=0.1)
    settings = {"step_size": 0.05, "restarts": 1}
    found = pgd(lambda z: (z * 0).sum(dim=(1, 2, 3)), x, threat, steps=3, generator=generator(0), **settings)
    torch.testing.assert_close(found, threat.start(x, generator(0)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("restarts", [1, 3])
def test_parameters_and_inputs_are_not_changed(restarts):
    model = small_network().train()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    x = images((4, 3, 6, 6), 0, 1.0).requires_grad_(True)
    before = x.detach().clone()
    y = torch.arange(4)
    found = pgd(
        lambda z: ce(model(z), y), x, Threat(norm="l2", eps=0.5), steps=2, step_size=0.2, restarts=restarts,
        generator=generator(0),
    )  # fmt: skip
    assert not found.requires_grad
    assert found.grad_fn is None
    assert x.requires_grad
    assert x.grad is None
    assert torch.equal(x, before)
    assert model.training
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if name != "0.weight")


def test_pgd_works_under_no_grad_and_on_a_frozen_model():
    model = small_network()
    x, y = images((4, 3, 6, 6), 0, 1.0), torch.arange(4)
    settings = {"steps": 3, "step_size": 0.05, "start": "clean"}
    expected = pgd(lambda z: ce(model(z), y), x, Threat(norm="linf", eps=0.1), **settings)
    with torch.no_grad(), evaluating(model), frozen(model):
        found = pgd(lambda z: ce(model(z), y), x, Threat(norm="linf", eps=0.1), **settings)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(found, expected)


def test_autocast_keeps_images_float32_and_feasible():
    with torch.autocast("cpu", torch.bfloat16):
        found, _, clean = attacked(steps=10)
    assert found.dtype == torch.float32
    assert Threat(norm="linf", eps=0.1).contains(found, images((6, 3, 6, 6), 0, 1.0)).all()
    _, reached, _ = attacked(steps=10)
    with torch.no_grad():
        lower = ce(small_network()(found), torch.arange(6) % 4)
    # The gradients were rounded to 8 bits; what they find is as strong to a few per cent.
    torch.testing.assert_close(lower, reached, rtol=0.05, atol=0.02)
    assert (lower > clean).all()


def test_the_attack_on_a_sample_does_not_depend_on_its_batch():
    model = small_network()
    x, y, threat = images((5, 3, 6, 6), 0, 1.0), torch.arange(5) % 4, Threat(norm="linf", eps=0.05)
    settings = {"steps": 4, "step_size": 0.02}
    together = pgd(lambda z: ce(model(z), y), x, threat, generator=[generator(0, i) for i in range(5)], **settings)
    alone = pgd(lambda z: ce(model(z), y[3:4]), x[3:4], threat, generator=[generator(0, 3)], **settings)
    torch.testing.assert_close(alone[0], together[3], rtol=0, atol=1e-5)


def test_restarts_keep_the_best_of_each_sample():
    # The loss is the start itself in one pixel: of many starts the highest must be kept, image by image.
    x, threat = torch.full((3, 1, 1, 1), 0.5), Threat(norm="linf", eps=0.2)
    best = pgd(lambda z: z[:, 0, 0, 0], x, threat, steps=0, step_size=0.1, restarts=9, generator=generator(0))
    draws = generator(0)
    highest = torch.stack([threat.start(x, draws) for _ in range(9)]).amax(dim=0)
    assert torch.equal(best, highest)


@pytest.mark.parametrize("settings", [{"steps": -1}, {"steps": 1, "restarts": 0}, {"steps": 1, "start": "uniformly"}])
def test_invalid_settings_are_refused(settings):
    with pytest.raises(ConfigError, match=r"of at least [01]|did you mean uniform\?"):
        pgd(lambda z: z.sum(dim=(1, 2, 3)), torch.ones(1, 1, 1, 1), Threat(norm="l2", eps=1), step_size=0.1, **settings)


def test_a_loss_without_a_gradient_is_an_error():
    rounded = nn.Linear(4, 2).requires_grad_(False)

    def loss(z):
        return ce(rounded(z.detach().round().flatten(1)), torch.zeros(1, dtype=torch.long))

    with pytest.raises(ModelError, match="no gradient towards the images"):
        pgd(loss, torch.ones(1, 1, 2, 2), Threat(norm="l2", eps=1), steps=1, step_size=1.0)
