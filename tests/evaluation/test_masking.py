"""Gradient masking: models built to mask their gradient are flagged, ordinary networks are not."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustill.attacks import pgd
from robustill.core.contexts import evaluating, frozen
from robustill.data import load
from robustill.evaluation.masking import MASKED, NO_SIGN, TOO_FEW, masking_ladder
from robustill.threat import Threat

LINF = Threat(norm="linf", eps=0.1)
L2 = Threat(norm="l2", eps=0.5)


def pictures(split: str, number: int) -> tuple[Tensor, Tensor]:
    data = load("digits", split=split)
    ids = torch.arange(number)
    return data.read(ids).float() / 255, data.labels[ids]


def digit_network(adversarial: bool, activation: type[nn.Module] = nn.ReLU, epochs: int = 12) -> nn.Sequential:
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), activation(), nn.Conv2d(12, 16, 3, stride=2), activation(),
        nn.Flatten(), nn.Linear(144, 10),
    )  # fmt: skip
    x, y = pictures("train", 1200)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(epochs):
        for part in torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(100):
            images = x[part]
            if adversarial:
                with evaluating(network), frozen(network):
                    images = pgd(
                        lambda z, part=part: F.cross_entropy(network(z), y[part], reduction="none"),
                        images, LINF, steps=3, step_size=0.05, generator=torch.Generator().manual_seed(epoch),
                    )  # fmt: skip
            optimizer.zero_grad()
            F.cross_entropy(network(images), y[part]).backward()
            optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def plain() -> nn.Sequential:
    return digit_network(adversarial=False)


@pytest.fixture(scope="module")
def robust() -> nn.Sequential:
    return digit_network(adversarial=True)


@pytest.fixture(scope="module")
def smooth() -> nn.Sequential:
    return digit_network(adversarial=True, activation=nn.SiLU, epochs=6)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    return pictures("test", 32)


class Around(nn.Module):
    def __init__(self, network, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, x):
        return self.after(self.network(self.before(x)))


@pytest.mark.parametrize(
    ("name", "threat"),
    [
        ("plain", LINF),
        ("plain", Threat(norm="linf", eps=0.02)),
        ("robust", L2),
        pytest.param("robust", LINF, marks=pytest.mark.slow),
        pytest.param("smooth", Threat(norm="l1", eps=3.0), marks=pytest.mark.slow),
    ],
)
def test_honest_networks_have_no_sign_of_masking(name, threat, digits, request):
    result = masking_ladder(request.getfixturevalue(name), *digits, threat)
    assert result["verdict"] == NO_SIGN, result
    assert result["reasons"] == []
    assert result["flags"]["ascent"] == pytest.approx(1, abs=0.5)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def shattered(x):
    # A ripple of a thousandth of the range: next to no change of the image, all of its gradient.
    return x + 0.002 * torch.sin(3000 * x)


DEFENCES = {
    "quantised input": (lambda x: (x * 8).round() / 8, lambda z: z, "gradient is zero"),
    "signs": (lambda x: (x - 0.5).sign(), lambda z: z, "gradient is zero"),
    "saturated softmax": (lambda x: x, lambda z: 1000 * z, "softmax is saturated|on the margin"),
    "added noise": (lambda x: x + 0.1 * torch.randn_like(x), lambda z: z, "two passes"),
    "ripple": (shattered, lambda z: z, "gains -?[0-9]+% of what it promises"),
    "rounded logits": (lambda x: x, lambda z: z.round(), "gradient is zero"),
}


@pytest.mark.slow
@pytest.mark.parametrize("threat", [LINF, L2, Threat(norm="l1", eps=3.0), Threat(norm="linf", eps=0.02)])
@pytest.mark.parametrize("name", ["plain", "robust", "smooth"])
def test_honest_networks_have_no_sign_of_masking_on_200_images(name, threat, request):
    result = masking_ladder(request.getfixturevalue(name), *pictures("test", 200), threat)
    assert result["verdict"] == NO_SIGN, result


# Three have a zero gradient; one of them is in every run of the tests.
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in ("signs", "rounded logits") else name for name in DEFENCES],
)
def test_masked_gradients_are_flagged(name, digits, robust):
    before, after, reason = DEFENCES[name]
    torch.manual_seed(0)
    network = Around(robust, before, after).eval()
    result = masking_ladder(network, *digits, LINF)
    assert result["verdict"] == MASKED
    assert any(re.search(reason, line) for line in result["reasons"]), result


class Distracted(nn.Module):
    """A close wrong class, and twenty far ones that together lead the cross-entropy away from it where pixel 1 is high.

    The adversary needs 0.05 of its 0.1 on pixel 0.
    """

    def forward(self, x):
        """[B,1,1,2] -> [B,22]."""
        way, far = 4 * (x[:, 0, 0, 0] - 0.5), torch.where(x[:, 0, 0, 1] > 0.5, -1.4, -20.0)
        return torch.stack([torch.zeros_like(way), way - 0.2, *[far - way] * 20], dim=1)


@pytest.mark.parametrize(("distracted", "verdict"), [(20, NO_SIGN), (40, MASKED)])
def test_a_cross_entropy_that_is_somewhat_weaker_is_no_sign_of_masking(distracted, verdict):
    x = torch.full((40, 1, 1, 2), 0.5)
    x[:, 0, 0, 1] = torch.where(torch.arange(40) < distracted, 0.8, 0.2)
    result = masking_ladder(Distracted(), x, torch.zeros(40, dtype=torch.long), LINF)
    assert result["broken_by"]["margin"] == 1
    assert result["broken_by"]["ce_restarts"] == 1 - distracted / 40
    assert result["verdict"] == verdict, result["reasons"]


class Scored(nn.Module):
    """Broken where the score of how far the pixels were moved is positive; the attack climbs another one.

    Args:
        score: from the change of the pixels, [B,P], to [B].
        climbed: the same, whose gradient an attack sees; None is the score's own.
    """

    def __init__(self, score, climbed=None):
        super().__init__()
        self.score, self.climbed = score, climbed or score

    def forward(self, x):
        """[B,1,H,W] -> [B,2]."""
        moved = x.flatten(1) - 0.5
        climbed = self.climbed(moved)
        score = self.score(moved).detach() + climbed - climbed.detach()
        return torch.stack([torch.zeros_like(score), score], dim=1)


def share_moved(moved):
    return moved.mean(dim=1) / LINF.eps


def one_of_two_sides(moved):
    # Starts from 0.04 on, three of ten, lead to an edge where images are broken; all others lead to the other edge.
    first = moved[:, 0]
    return torch.where(first > 0.04, 20 * (first - 0.04) - 1, 0.04 - first - 1)


def within(low, high, inside, outside):
    return lambda moved: torch.where((moved[:, 0] > low) & (moved[:, 0] < high), inside, outside)


def first_pixel(moved):
    return moved[:, 0]


SIGNS = {
    "noise": (Scored(lambda d: share_moved(d) - 0.9, lambda d: -share_moved(d)), 2,
              "random noise breaks 40 of 40 images that no gradient attack breaks"),
    # Of 36 pixels noise moves hardly ever 33 the same way.
    "search": (Scored(lambda d: share_moved(d) - 0.8, lambda d: -share_moved(d)), 36,
               "Square, which sees no gradient, breaks [34][0-9] of 40 images that no gradient attack breaks"),
    "restarts": (Scored(one_of_two_sides), 2, "5 restarts break [789][0-9]% where one breaks [1234][0-9]%"),
    # One step of the whole radius leaves half of the images short of the edge, to which a hundred steps lead.
    "a lower loss": (Scored(within(-1, 0.099, -1.0, -2.0), first_pixel), 2,
                     "the loss after 100 steps is lower than after fewer"),
    "fewer broken": (Scored(within(0.01, 0.099, 1.0, -1.0), first_pixel), 2,
                     "100 steps break fewer images than fewer steps do"),
    "a larger radius": (Scored(within(0.04, 0.06, 1.0, -1.0), first_pixel), 2, "robust accuracy rises at eps 0.1"),
    "a tiny radius": (Scored(lambda d: d[:, 0] - 0.0005), 2,
                      "at eps 0.001, a hundredth of the radius, 100% are broken already"),
}  # fmt: skip


@pytest.mark.parametrize("sign", SIGNS)
def test_each_sign_of_masking_is_seen_on_a_network_made_for_it(sign):
    network, pixels, reason = SIGNS[sign]
    result = masking_ladder(network, torch.full((40, 1, 1, pixels), 0.5), torch.zeros(40, dtype=torch.long), LINF)
    assert result["verdict"] == MASKED
    assert any(re.fullmatch(reason, line) for line in result["reasons"]), result


def test_images_that_count_as_robust_where_all_can_become_grey_are_a_sign_of_masking():
    class Bright(nn.Module):
        """Says whether the first pixel is bright, with a gradient that leads away from the change."""

        def forward(self, x):
            pixel = x[:, 0, 0, 0]
            bright = (pixel > 0.5).float() + pixel.detach() - pixel
            return torch.stack([1 - bright, bright], dim=1)

    y = torch.arange(40) % 2
    x = torch.where(y == 1, 0.8, 0.2)[:, None, None, None].repeat(1, 1, 1, 2)
    reasons = masking_ladder(Bright(), x, y, LINF)["reasons"]
    assert "at eps 0.5, where any image can become grey, 100% still count as robust" in reasons


@pytest.mark.slow
def test_stronger_transfer_from_a_surrogate_is_flagged(plain, digits):
    hidden = Around(plain, before=lambda x: (x * 8).round() / 8).eval()
    result = masking_ladder(hidden, *digits, LINF, surrogate=plain)
    assert result["broken_by"]["transfer"] > result["broken_by"]["white_box"] + 0.3
    assert any("transfer from the surrogate breaks" in line for line in result["reasons"])
    honest = masking_ladder(plain, *digits, LINF, surrogate=digit_network(adversarial=False, epochs=2))
    assert honest["verdict"] == NO_SIGN
    assert 0 < honest["broken_by"]["transfer"] <= honest["broken_by"]["white_box"]


def test_results_repeat_and_few_images_give_no_verdict(robust, digits):
    x, y = digits
    assert masking_ladder(robust, x[:20], y[:20], LINF) == masking_ladder(robust, x[:20], y[:20], LINF)
    assert masking_ladder(robust, x[:5], y[:5], LINF)["verdict"] == TOO_FEW
    assert masking_ladder(robust, x, y, Threat(norm="linf", eps=0.0))["verdict"] == NO_SIGN
