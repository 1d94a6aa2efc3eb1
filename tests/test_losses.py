import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr, softmax
from torch.nn import functional as F

from robustill.losses import ce, dlr, kl, margin, soft_ce, soft_kl

reproducible = settings(max_examples=40)

sizes = st.tuples(st.integers(1, 5), st.integers(3, 12))
scales = st.sampled_from([1e-3, 1.0, 30.0, 1e4])
seeds = st.integers(0, 10_000)


def drawn(size, scale, seed):
    noise = np.random.default_rng(seed)
    logits, other = (noise.normal(size=size).astype(np.float32) * np.float32(scale) for _ in range(2))
    return logits, other, noise.integers(size[1], size=size[0])


def close(actual, expected, scale):
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5, atol=1e-6 * max(scale, 1))


@reproducible
@given(sizes, scales, seeds)
def test_ce_is_minus_the_log_probability_of_the_label(size, scale, seed):
    z, _, y = drawn(size, scale, seed)
    expected = -log_softmax(z.astype(np.float64), axis=1)[np.arange(len(y)), y]
    close(ce(torch.tensor(z), torch.tensor(y)), expected, scale)


@reproducible
@given(sizes, scales, seeds)
def test_soft_ce_equals_float64(size, scale, seed):
    z, t, y = drawn(size, scale, seed)
    q = softmax(t.astype(np.float64), axis=1)
    close(
        soft_ce(torch.tensor(z), torch.tensor(q)), -(q * log_softmax(z.astype(np.float64), axis=1)).sum(axis=1), scale
    )
    one_hot = F.one_hot(torch.tensor(y), size[1])
    close(soft_ce(torch.tensor(z), one_hot), ce(torch.tensor(z), torch.tensor(y)).numpy(), scale)


@reproducible
@given(sizes, scales, seeds, st.sampled_from([0.5, 1.0, 4.0, 30.0]))
def test_kl_equals_float64(size, scale, seed, temperature):
    z, t, _ = drawn(size, scale, seed)
    p = softmax(t.astype(np.float64) / temperature, axis=1)
    log_p, log_q = (log_softmax(v.astype(np.float64) / temperature, axis=1) for v in (t, z))
    expected = temperature**2 * (p * (log_p - log_q)).sum(axis=1)
    atol = 1e-6 * max(scale / temperature, 1) * temperature**2
    np.testing.assert_allclose(
        kl(torch.tensor(z), torch.tensor(t), temperature).numpy(), expected, rtol=1e-5, atol=atol
    )
    fixed = soft_kl(torch.tensor(z), torch.tensor(p), temperature)
    np.testing.assert_allclose(fixed.numpy(), expected, rtol=1e-5, atol=atol)


def test_kl_agrees_with_torch_and_with_scipy():
    z, t, _ = drawn((6, 10), 3.0, 0)
    reference = F.kl_div(
        F.log_softmax(torch.tensor(z), dim=1), F.log_softmax(torch.tensor(t), dim=1), log_target=True, reduction="none"
    ).sum(dim=1)
    torch.testing.assert_close(kl(torch.tensor(z), torch.tensor(t)), reference)
    close(kl(torch.tensor(z), torch.tensor(t)), rel_entr(softmax(t, axis=1), softmax(z, axis=1)).sum(axis=1), 1.0)


def test_kl_has_the_temperature_squared_gradient_of_hinton():
    # d/dz of t²·KL(p‖softmax(z/t)) is t·(softmax(z/t) − p).
    z, t, _ = drawn((4, 5), 2.0, 1)
    prediction = torch.tensor(z, requires_grad=True)
    kl(prediction, torch.tensor(t), 4.0).sum().backward()
    torch.testing.assert_close(prediction.grad, torch.tensor(4.0 * (softmax(z / 4, axis=1) - softmax(t / 4, axis=1))))


def test_kl_is_differentiable_in_both_arguments():
    z, t, _ = drawn((3, 4), 1.0, 2)
    double = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (z, t)]
    p, q = (v.softmax(dim=1) for v in (double[1], double[0]))
    expected = torch.autograd.grad((p * (p / q).log()).sum(), double)
    single = [torch.tensor(v, requires_grad=True) for v in (z, t)]
    actual = torch.autograd.grad(kl(*single).sum(), single)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 30.0])
def test_gradients_are_finite_where_probabilities_underflow(temperature):
    prediction = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    target = torch.tensor([[-1e4, 1e4, 0.0], [-1e4, 1e4, 1e4], [1e4, 0.0, -1e4]], requires_grad=True)
    y = torch.tensor([1, 0, 2])
    losses = {
        "kl": kl(prediction, target, temperature),
        "soft_kl": soft_kl(prediction, target.detach().softmax(dim=1), temperature),
        "ce": ce(prediction, y),
        "soft_ce": soft_ce(prediction, target.detach().softmax(dim=1)),
        "margin": margin(prediction, y),
        "dlr": dlr(prediction, y),
    }
    for name, loss in losses.items():
        assert torch.isfinite(loss).all(), name
        grads = torch.autograd.grad(loss.sum(), [prediction, target], allow_unused=True)
        assert all(torch.isfinite(grad).all() for grad in grads if grad is not None), name


def test_soft_kl_allows_zeros_in_the_target():
    z = torch.tensor([[1.0, 2.0, 3.0]])
    expected = 0.25 * (math.log(0.25) - F.log_softmax(z, dim=1)[0, 0]) + 0.75 * (
        math.log(0.75) - F.log_softmax(z, dim=1)[0, 2]
    )
    torch.testing.assert_close(soft_kl(z, torch.tensor([[0.25, 0.0, 0.75]]))[0], expected)
    torch.testing.assert_close(soft_kl(z, torch.tensor([[0.0, 1.0, 0.0]])), ce(z, torch.tensor([1])))


def test_kl_of_equal_logits_is_zero():
    z = torch.tensor(drawn((5, 7), 100.0, 3)[0])
    torch.testing.assert_close(kl(z, z), torch.zeros(5), rtol=0, atol=1e-6)
    torch.testing.assert_close(soft_kl(z, z.softmax(dim=1)), torch.zeros(5), rtol=0, atol=1e-5)


@reproducible
@given(sizes, scales, seeds)
def test_margin_is_positive_where_the_prediction_is_wrong(size, scale, seed):
    z, _, y = drawn(size, scale, seed)
    expected = np.array([np.delete(row, label).max() - row[label] for row, label in zip(z, y, strict=True)])
    actual = margin(torch.tensor(z), torch.tensor(y))
    close(actual, expected, scale)
    assert ((actual > 0).numpy() == (z.argmax(axis=1) != y)).all()
    assert ((dlr(torch.tensor(z), torch.tensor(y)) > 0).numpy() == (z.argmax(axis=1) != y)).all()


@reproducible
@given(sizes, st.sampled_from([0.1, 1.0, 30.0]), seeds, st.floats(-50, 50), st.floats(0.1, 100))
def test_dlr_is_invariant_to_shift_and_scale(size, scale, seed, shift, factor):
    z, _, y = drawn(size, scale, seed)
    double = z.astype(np.float64)
    highest = np.sort(double, axis=1)[:, ::-1]
    others = np.array([np.delete(row, label).max() for row, label in zip(double, y, strict=True)])
    expected = -(double[np.arange(len(y)), y] - others) / (highest[:, 0] - highest[:, 2])
    rounding = 1e-5 + 4e-5 / (highest[:, 0] - highest[:, 2]).min()
    for logits in (z, z + np.float32(shift), z * np.float32(factor)):
        actual = dlr(torch.tensor(logits), torch.tensor(y)).numpy()
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=rounding)


def test_dlr_does_not_depend_on_the_order_of_classes():
    z, _, y = drawn((5, 6), 1.0, 4)
    order = np.random.default_rng(0).permutation(6)
    moved = torch.tensor(np.argsort(order)[y])
    torch.testing.assert_close(dlr(torch.tensor(z[:, order]), moved), dlr(torch.tensor(z), torch.tensor(y)))


@pytest.mark.parametrize("autocast", [False, True])
def test_losses_of_bf16_logits_equal_those_of_float32(autocast):
    z, t, y = (torch.tensor(v) for v in drawn((4, 5), 1.0, 5))
    z, t = z.bfloat16(), t.bfloat16()
    q = t.float().softmax(dim=1).bfloat16()
    losses = {
        "ce": (ce, y, y),
        "soft_ce": (soft_ce, q, q.float()),
        "kl": (kl, t, t.float()),
        "soft_kl": (soft_kl, q, q.float()),
        "margin": (margin, y, y),
        "dlr": (dlr, y, y),
    }
    for name, (loss, target, widened) in losses.items():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            from_bf16 = loss(z, target)
        assert from_bf16.dtype == torch.float32, name
        assert from_bf16.shape == (4,), name
        torch.testing.assert_close(from_bf16, loss(z.float(), widened), rtol=0, atol=0)


def test_a_float64_target_gives_float32():
    q = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
    for loss in (soft_ce, soft_kl):
        assert loss(torch.zeros(1, 2), q).dtype == torch.float32
    assert kl(torch.zeros(1, 2), q).dtype == torch.float32
