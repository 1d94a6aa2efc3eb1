import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize
from scipy.stats import kstest

from robustill.core.errors import ConfigError
from robustill.core.randomness import generator
from robustill.threat import Threat, parse_eps

NORMS = ("linf", "l2", "l1")
reproducible = settings(max_examples=60)

shapes = st.tuples(st.integers(1, 3), st.sampled_from([1, 3]), st.integers(1, 5), st.integers(1, 5))
radii = st.one_of(
    st.sampled_from([0.0, 1e-12, 1e-6, 8 / 255, 1.0]), st.floats(1e-3, 1.0), st.sampled_from([2.0, 50.0, 1e6, 1e9])
)
seeds = st.integers(0, 10_000)


@st.composite
def threats(draw):
    norm = draw(st.sampled_from(NORMS))
    eps = draw(radii)
    return Threat(norm=norm, eps=min(eps, 1.0) if norm == "linf" else eps)


def images(shape, seed):
    """Return random images with many pixels exactly at 0 and at 1."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return ((x - 0.5) * 1.5 + 0.5).clamp(0, 1)


def distance(x_adv, x, norm):
    order = {"linf": math.inf, "l2": 2, "l1": 1}[norm]
    return (x_adv.double() - x.double()).flatten(1).norm(p=order, dim=1)


def assert_feasible(x_adv, x, threat):
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (distance(x_adv, x, threat.norm) <= threat.eps * (1 + 1e-5) + 1e-6).all()
    assert threat.contains(x_adv, x).all()


@reproducible
@given(shapes, threats(), seeds)
def test_a_start_is_feasible(shape, threat, seed):
    x = images(shape, seed)
    assert_feasible(threat.start(x, torch.Generator().manual_seed(seed)), x, threat)


@reproducible
@given(shapes, threats(), seeds, st.floats(-30, 30), st.sampled_from([1e-3, 0.25, 1.0, 2.5, 100.0]))
def test_a_step_along_any_gradient_is_feasible(shape, threat, seed, exponent, share):
    x = images(shape, seed)
    noise = torch.Generator().manual_seed(seed)
    grad = torch.randn(shape, generator=noise) * 10.0**exponent
    x_adv = threat.start(x, noise)
    step = min(threat.eps * share, 1e6)
    for _ in range(2):
        x_adv = threat.project(x_adv + step * threat.ascent(grad), x)
        assert_feasible(x_adv, x, threat)


@reproducible
@given(shapes, threats(), seeds)
def test_extreme_gradients_give_a_feasible_step(shape, threat, seed):
    x = images(shape, seed)
    values = torch.tensor([0.0, 1e-30, -1e-30, 1e30, -1e30, 1.0])
    grad = values[torch.randint(6, shape, generator=torch.Generator().manual_seed(seed))]
    step = min(threat.eps, 1e6)
    assert_feasible(threat.project(x + step * threat.ascent(grad), x), x, threat)


@reproducible
@given(shapes, threats(), seeds, st.sampled_from([0.01, 1.0, 100.0, 1e4]))
def test_a_projection_is_feasible_and_idempotent(shape, threat, seed, scale):
    x = images(shape, seed)
    far = x + scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    once = threat.project(far, x)
    assert_feasible(once, x, threat)
    torch.testing.assert_close(threat.project(once, x), once, rtol=0, atol=2e-6)


@reproducible
@given(shapes, threats(), seeds, st.floats(0, 0.999))
def test_a_feasible_point_is_not_moved(shape, threat, seed, share):
    x = images(shape, seed)
    inside = x + share * (threat.start(x, torch.Generator().manual_seed(seed)) - x)
    torch.testing.assert_close(threat.project(inside, x), inside, rtol=0, atol=1e-6)


def nearest(far, x, threat):
    """Project onto ball ∩ box (Euclidean, float64), from its optimality conditions by a scalar search.

    l2: z = clip(d/(1+λ)); l1: z = clip(sign(d)·max(|d|−λ, 0)); clip to [−x, 1−x]; λ such that the length is eps.
    """
    d, low, high = far - x, -x, 1 - x

    def shift(multiplier):
        if threat.norm == "l2":
            return np.clip(d / (1 + multiplier), low, high)
        return np.clip(np.sign(d) * np.maximum(np.abs(d) - multiplier, 0), low, high)

    def excess(multiplier):
        return np.linalg.norm(shift(multiplier), ord=2 if threat.norm == "l2" else 1) - threat.eps

    if excess(0.0) <= 0:
        return x + shift(0.0)
    top = 1.0
    while excess(top) > 0:
        top *= 2
    return x + shift(brentq(excess, 0, top, xtol=1e-14, rtol=1e-14, maxiter=500))


@reproducible
@given(shapes, st.sampled_from(["l2", "l1"]), st.sampled_from([0.03, 0.5, 1.7, 6.0]), seeds, st.floats(-2, 1.5))
def test_projection_is_the_nearest_feasible_point(shape, norm, eps, seed, exponent):
    threat = Threat(norm=norm, eps=eps)
    x = images(shape, seed)
    far = x + 10.0**exponent * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    projected = threat.project(far, x)
    for one, clean, result in zip(far, x, projected, strict=True):
        expected = nearest(one.double().numpy().ravel(), clean.double().numpy().ravel(), threat)
        np.testing.assert_allclose(result.double().numpy().ravel(), expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", range(4))
def test_projection_agrees_with_a_general_solver(norm, seed):
    threat = Threat(norm=norm, eps=0.4 if norm == "linf" else 0.9)
    x = images((1, 1, 2, 3), seed)
    far = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    target, clean = far.double().numpy().ravel(), x.double().numpy().ravel()
    d = len(clean)
    # The shift is split into positive and negative parts, so that every norm's constraint is smooth.
    signs = np.concatenate([np.eye(d), -np.eye(d)])

    def room(parts):
        length = {"linf": lambda p: threat.eps - (p[:d] + p[d:]), "l1": lambda p: threat.eps - p.sum()}
        return length.get(norm, lambda p: threat.eps**2 - ((p @ signs) ** 2).sum())(parts)

    solution = minimize(
        lambda parts: ((clean + parts @ signs - target) ** 2).sum(),
        np.zeros(2 * d),
        method="SLSQP",
        bounds=[(0, 1 - v) for v in clean] + [(0, v) for v in clean],
        constraints=[{"type": "ineq", "fun": room}],
        options={"ftol": 1e-14, "maxiter": 500},
    )
    expected = clean + solution.x @ signs
    np.testing.assert_allclose(threat.project(far, x).double().numpy().ravel(), expected, atol=2e-4)


def test_projection_of_many_pixels_is_on_the_sphere():
    noise = torch.Generator().manual_seed(0)
    x = images((2, 3, 32, 32), 1)
    for threat in (Threat(norm="l2", eps=3.0), Threat(norm="l1", eps=12.0)):
        x_adv = threat.project(x + torch.randn(x.shape, generator=noise), x)
        torch.testing.assert_close(
            distance(x_adv, x, threat.norm), torch.full((2,), threat.eps).double(), rtol=2e-5, atol=0
        )


def test_one_distant_pixel_keeps_the_l1_threshold_exact():
    threat = Threat(norm="l1", eps=4.0)
    x = torch.full((1, 3, 16, 16), 0.5)
    far = x + 0.02 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    far[0, 0, 0, 0] = 1e4
    expected = nearest(far.double().numpy().ravel(), x.double().numpy().ravel(), threat)
    projected = threat.project(far, x)
    np.testing.assert_allclose(projected.double().numpy().ravel(), expected, rtol=0, atol=1e-6)
    assert distance(projected, x, "l1").item() == pytest.approx(4.0, rel=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_images_are_projected_independently(norm):
    threat = Threat(norm=norm, eps=0.4)
    x = images((3, 3, 4, 4), 3)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    far = x + noise * torch.tensor([0.1, 1.0, 1e7])[:, None, None, None]
    together = threat.project(far, x)
    for i in range(3):
        torch.testing.assert_close(together[i], threat.project(far[i : i + 1], x[i : i + 1])[0], rtol=0, atol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_projection_does_not_depend_on_memory_layout(norm):
    threat = Threat(norm=norm, eps=0.5)
    x = images((3, 3, 6, 5), 2)
    far = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    last = torch.channels_last
    other = threat.project(far.contiguous(memory_format=last), x.contiguous(memory_format=last))
    torch.testing.assert_close(other, threat.project(far, x), rtol=0, atol=1e-6)


@reproducible
@given(shapes, seeds, st.floats(-37, 37))
def test_ascent_is_a_unit_direction_at_every_scale(shape, seed, exponent):
    # 1e-37 is about the smallest normal float32; gradients of confident networks come close to it.
    unscaled = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).clamp(-5, 5)
    grad = unscaled * 10.0**exponent
    assert torch.equal(Threat(norm="linf", eps=0.1).ascent(grad), unscaled.sign())
    flat = unscaled.double().flatten(1)
    for norm, order in (("l2", 2), ("l1", math.inf)):
        expected = flat / flat.norm(p=order, dim=1, keepdim=True)
        step = Threat(norm=norm, eps=0.1).ascent(grad).double().flatten(1)
        torch.testing.assert_close(step, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_a_gradient_of_zero_gives_a_step_of_zero(norm):
    grad = torch.zeros(2, 3, 4, 4)
    grad[1] = 1.0
    step = Threat(norm=norm, eps=0.1).ascent(grad)
    assert step[0].abs().max() == 0
    assert step[1].abs().min() > 0


def test_starts_are_uniform_in_the_ball():
    # Grey images and a small radius: no pixel meets the bounds. P(‖δ‖ ≤ r) = (r/eps)^d; in l∞ each pixel is uniform.
    x = torch.full((4000, 1, 1, 3), 0.5)
    for norm in ("l2", "l1"):
        threat = Threat(norm=norm, eps=0.2)
        delta = (threat.start(x, generator(0, norm)) - x).double().flatten(1)
        radius = distance(delta, torch.zeros_like(delta), norm) / threat.eps
        assert kstest(radius**3, "uniform").pvalue > 0.01
        torch.testing.assert_close(delta.mean(dim=0), torch.zeros(3).double(), rtol=0, atol=0.006)
        direction = delta / distance(delta, torch.zeros_like(delta), norm)[:, None]
        # Archimedes: a coordinate of a point on the 2-sphere is uniform; on the simplex a share has 1 − (1−s)².
        share = direction[:, 0]
        assert kstest((share + 1) / 2 if norm == "l2" else 1 - (1 - share.abs()) ** 2, "uniform").pvalue > 0.01
    delta = Threat(norm="linf", eps=0.2).start(x, generator(0, "linf")) - x
    assert kstest((delta.double().flatten() / 0.4 + 0.5), "uniform").pvalue > 0.01


@pytest.mark.parametrize(("norm", "draw"), [("l1", 0.0), ("l1", 0.5), ("l2", 0.0)])
def test_no_draw_makes_a_start_nan(norm, draw, monkeypatch):
    # A uniform draw of 0 is an exponential of infinity, one of 1/2 an exponential of 0; normal draws may all be 0.
    monkeypatch.setattr("robustill.threat.uniform", lambda like, generators: torch.full_like(like, draw))
    monkeypatch.setattr("robustill.threat.gaussian", lambda like, generators: torch.full_like(like, draw))
    x = torch.full((1, 1, 2, 2), 0.5)
    assert_feasible(Threat(norm=norm, eps=0.5).start(x), x, Threat(norm=norm, eps=0.5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("norm", NORMS)
def test_starts_have_the_type_of_the_images(norm, dtype):
    # So many draws that some are the largest size below 1.
    x = torch.full((20, 3, 32, 32), 0.5, dtype=dtype)
    start = Threat(norm=norm, eps=0.5).start(x, generator(0, "start"))
    assert start.dtype == dtype
    delta = (start - x).double()
    assert (distance(delta, torch.zeros_like(delta), norm) <= 0.51).all()
    assert bool(delta.any())


@pytest.mark.parametrize("norm", NORMS)
def test_a_start_with_own_generator_ignores_the_batch(norm):
    threat = Threat(norm=norm, eps=0.3)
    x = images((5, 3, 4, 4), 0)
    together = threat.start(x, [generator(7, i) for i in range(5)])
    assert not torch.equal(together[0] - x[0], together[1] - x[1])
    for i in (4, 2):
        assert torch.equal(threat.start(x[i : i + 1], [generator(7, i)])[0], together[i])


@pytest.mark.parametrize("norm", NORMS)
def test_distance_and_contains_agree(norm):
    threat = Threat(norm=norm, eps=0.1)
    x = torch.full((5, 1, 2, 2), 0.5)
    x_adv = x.clone()
    x_adv[1, 0, 0, 0] += 0.1
    x_adv[2, 0, 0, 0] += 0.101
    x_adv[3, 0, 0, 0] = torch.nan
    expected = torch.tensor([0, 0.1, 0.101])
    torch.testing.assert_close(threat.distance(x_adv, x)[:3], expected, rtol=0, atol=1e-6)
    assert threat.contains(x_adv, x).tolist() == [True, True, False, False, True]
    assert threat.contains(torch.full((1, 1, 1, 1), 1.05), torch.ones(1, 1, 1, 1)).tolist() == [False]
    assert threat.contains(torch.full((1, 1, 1, 1), -0.05), torch.zeros(1, 1, 1, 1)).tolist() == [False]
    corners = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    assert threat.contains(corners + torch.tensor([-0.05, 0.0]), corners).tolist() == [False]
    assert threat.contains(corners + torch.tensor([0.0, 0.05]), corners).tolist() == [False]


@pytest.mark.parametrize("norm", NORMS)
def test_distance_over_many_pixels(norm):
    x, other = images((3, 3, 4, 4), 0), images((3, 3, 4, 4), 1)
    torch.testing.assert_close(
        Threat(norm=norm, eps=0.1).distance(other, x).double(), distance(other, x, norm), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(
    ("norm", "eps", "beyond", "expected"),
    [
        ("linf", 0.5, 4e-6, True),  # 1e-5 of the radius
        ("linf", 0.5, 8e-6, False),
        ("l2", 0.01, 0.8e-6, True),  # but at least 1e-6
        ("l2", 0.01, 1.6e-6, False),
        ("l1", 0.01, 1.6e-6, True),  # times √4 for the four pixels of l1
        ("l1", 0.01, 3.0e-6, False),
    ],
)
def test_contains_tolerates_rounding(norm, eps, beyond, expected):
    x = torch.zeros(1, 1, 2, 2)
    x_adv = x.clone()
    x_adv[0, 0, 0, 0] = eps + beyond
    assert Threat(norm=norm, eps=eps).contains(x_adv, x).tolist() == [expected]


@pytest.mark.parametrize("eps", [0.1, 0.5, 12.0])
def test_contains_tolerates_accumulated_l1_rounding(eps):
    threat = Threat(norm="l1", eps=eps)
    x = images((1, 3, 128, 128), 0)
    assert threat.contains(threat.start(x, torch.Generator().manual_seed(0)), x).all()
    assert threat.contains(threat.project(images((1, 3, 128, 128), 1), x), x).all()


def test_a_radius_is_parsed():
    assert parse_eps("8/255") == parse_eps(" 8 / 255 ") == 8 / 255
    assert parse_eps("0.5") == parse_eps(0.5) == 0.5
    assert parse_eps("1") == 1.0
    for wrong in ("8/0", "eight", "", "1/2/3", None, [1]):
        with pytest.raises(ConfigError, match=r"expected a number or a fraction such as 8/255"):
            parse_eps(wrong)


@pytest.mark.parametrize("text", ["linf:8/255", "l2:0.5", "l1:12", "l2:128/255", "linf:0", "linf:1"])
def test_a_threat_is_written_as_it_is_read(text):
    threat = Threat.parse(text)
    assert Threat.parse(str(threat)) == threat
    assert Threat.parse(text.upper().replace(":", " : ")) == threat


@pytest.mark.parametrize(
    ("threat", "text"),
    [
        (Threat(norm="linf", eps=8 / 255), "linf:8/255"),
        (Threat(norm="l2", eps=51 / 255), "l2:0.2"),
        (Threat(norm="l2", eps=0.25), "l2:0.25"),
        (Threat(norm="l2", eps=0.12345), "l2:0.12345"),
    ],
)
def test_a_radius_is_written_as_a_short_fraction(threat, text):
    assert str(threat) == text


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Threat(norm="linf", eps=1.5), r"eps 1.5 is larger than 1, .* did you mean 1.5/255\?"),
        (lambda: Threat(norm="l2", eps=1.001e9), "eps 1.001e\\+09: expected a finite radius"),
        (lambda: Threat(norm="linf", eps=8), r"eps 8 is larger than 1, .* did you mean 8/255\?"),
        (lambda: Threat(norm="l3", eps=0.1), r"norm 'l3' is unknown: known: l1, l2, linf"),
        (lambda: Threat(norm="l2", eps=-0.1), "eps -0.1: expected a finite radius"),
        (lambda: Threat(norm="l2", eps=math.inf), "eps inf: expected a finite radius"),
        (lambda: Threat(norm="l2", eps=math.nan), "eps nan: expected a finite radius"),
        (lambda: Threat.parse("linf"), "threat 'linf': expected NORM:EPS"),
        (lambda: Threat.parse("linf:1e400"), "eps inf: expected a finite radius"),
    ],
)
def test_invalid_threats_are_refused_in_one_line(make, line):
    with pytest.raises(ConfigError, match=line) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_widest_radius_is_from_black_to_white(norm):
    black, white = torch.zeros(1, 2, 3, 4), torch.ones(1, 2, 3, 4)
    widest = Threat(norm=norm, eps=0.1).widest((2, 3, 4))
    assert widest == pytest.approx(float(Threat(norm=norm, eps=0.1).distance(black, white)))
    Threat(norm=norm, eps=widest).check_fits((2, 3, 4), "them")
    if norm != "linf":
        with pytest.raises(ConfigError, match=f"no two images of them are further apart than {widest:g} in {norm}"):
            Threat(norm=norm, eps=1.01 * widest).check_fits((2, 3, 4), "them")
