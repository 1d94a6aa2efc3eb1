"""Ensembles of teachers against the same means in float64."""

import math

import pytest
import torch
from torch import nn

from robustill.core.errors import ConfigError, ModelError
from robustill.teachers.ensemble import Ensemble, combine


class Constant(nn.Module):
    """The same logits for every image, or given logits for given images."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = torch.tensor(logits) if isinstance(logits[0], float) else logits[0]

    def forward(self, x):
        return self.logits.expand(len(x), -1)


X = torch.zeros(3, 1, 2, 2)


def random_members(count):
    logits = 3 * torch.randn(count, 3, 5, generator=torch.Generator().manual_seed(0))
    return logits, [Constant(each) for each in logits]


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 5.0], [0.0, 1.0, 1.0]])
def test_mean_of_probabilities_matches_float64(weights):
    logits, members = random_members(3)
    share = torch.tensor(weights or [1.0] * 3, dtype=torch.float64)
    share = share / share.sum()
    expected = (share[:, None, None] * logits.double().softmax(dim=-1)).sum(dim=0).log()
    actual = Ensemble(members, weights)(X)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(actual.exp().sum(dim=1), torch.ones(3))


def test_mean_of_logits_matches_float64():
    logits, members = random_members(2)
    expected = 0.25 * logits[0].double() + 0.75 * logits[1].double()
    torch.testing.assert_close(Ensemble(members, [1, 3], "logits")(X).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
def test_the_mean_is_float32_under_autocast(mean):
    _, members = random_members(2)
    ensemble = Ensemble(members, [1, 2], mean)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = ensemble(X)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, ensemble(X), rtol=0, atol=0)


def test_extreme_logits_stay_finite():
    # Two confident members that disagree: one half each, and almost nothing for the third class.
    logits = Ensemble([Constant(1e4, -1e4, 0.0), Constant(-1e4, 1e4, 0.0)])(X)
    torch.testing.assert_close(logits[0, :2], torch.full((2,), math.log(0.5)))
    assert torch.isfinite(logits).all()
    assert logits[0, 2] < -9e3


def test_gradients_reach_the_image_through_every_member():
    x = torch.rand(2, 3, requires_grad=True)
    members = [nn.Linear(3, 4), nn.Linear(3, 4)]
    (grad,) = torch.autograd.grad(Ensemble(members, [0.0, 1.0])(x)[:, 0].sum(), x)
    (alone,) = torch.autograd.grad(members[1](x).log_softmax(dim=1)[:, 0].sum(), x)
    torch.testing.assert_close(grad, alone)


def test_members_with_different_numbers_of_classes_are_refused():
    with pytest.raises(ModelError, match=r"logits of shapes \[\[3, 2\], \[3, 3\]\]: expected one shape"):
        Ensemble([Constant(0.0, 1.0), Constant(0.0, 1.0, 2.0)])(X)


@pytest.mark.parametrize(
    ("members", "weights"), [(0, None), (2, [1.0]), (2, [1.0, -1.0]), (2, [0.0, 0.0]), (1, [math.nan]), (1, [math.inf])]
)
def test_invalid_weights_are_refused(members, weights):
    with pytest.raises(ConfigError, match=f"ensemble of {members} teachers"):
        Ensemble([Constant(0.0, 1.0)] * members, weights)


def test_an_unknown_mean_is_refused():
    with pytest.raises(ConfigError, match=r"mean 'logit' is unknown: did you mean logits\?"):
        Ensemble([Constant(0.0, 1.0)], mean="logit")


def test_combine_groups_teachers_by_role():
    one, two, natural = Constant(0.0, 1.0), Constant(1.0, 0.0), Constant(2.0, 0.0)
    assert combine([]) is None
    assert combine([("robust", 7.0, one)]) is one
    together = combine([("robust", 1.0, one), ("robust", 3.0, two)], "logits")
    assert isinstance(together, Ensemble)
    torch.testing.assert_close(together(X)[0], torch.tensor([0.75, 0.25]))
    roles = combine([("robust", 1.0, one), ("natural", 1.0, natural), ("robust", 3.0, two)])
    assert isinstance(roles, nn.ModuleDict)
    assert set(roles) == {"robust", "natural"}
    assert roles["natural"] is natural
    torch.testing.assert_close(roles["robust"](X), Ensemble([one, two], [1.0, 3.0])(X))
