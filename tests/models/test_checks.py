import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustill.core.errors import ModelError
from robustill.models.checks import check_contract, check_network

X = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Gives(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_a_network_passes_and_is_left_as_it_was():
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(48), nn.Linear(48, 10)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    check_network(network, X, 10, "student")
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("network", "line"),
    [
        (nn.Conv2d(1, 4, 3), r"teacher t fails on images of shape \[2, 3, 4, 4\]: .*channels"),
        (Gives(AssertionError("Input height (4) doesn't match model (224)\nmore")), r"fails on .*: Input height \(4\)"),
        (Gives(AssertionError()), r"fails on images of shape \[2, 3, 4, 4\]: AssertionError"),
        (Gives(KeyError("pixels")), r"fails on images of shape \[2, 3, 4, 4\]: 'pixels'"),
        (Gives((torch.zeros(2, 10),)), r"teacher t returns a tuple, expected a tensor of logits \[B,10\]"),
        (Gives(torch.zeros(2, 100)), "teacher t gives 100 logits, but the data has 10 classes"),
        (Gives(torch.zeros(2, 10, 1, 1)), r"teacher t returns shape \[2, 10, 1, 1\], expected \[2, 10\]"),
        (Gives(torch.full((2, 10), torch.nan)), "teacher t returns NaN or infinite logits"),
        (Gives(torch.full((2, 10), torch.inf)), "teacher t returns NaN or infinite logits"),
    ],
)
def test_each_thing_that_can_be_wrong_gets_one_line(network, line):
    with pytest.raises(ModelError, match=line) as caught:
        check_network(network, X, 10, "teacher t")
    assert "\n" not in str(caught.value)


Y = torch.tensor([1, 3])
WEIGHT = torch.randn(48, 10, generator=torch.Generator().manual_seed(1))


class Around(nn.Module):
    """Something around logits that are linear in the image."""

    def __init__(self, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x):
        return self.after(self.before(x).flatten(1) @ WEIGHT)


def clean_of_itself(x):
    x.sub_(0.5)
    return x


class Sound(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(48), nn.Dropout(0.5), nn.Linear(48, 10))

    def forward(self, x):
        return self.body(x)


def test_a_sound_network_gives_no_finding_and_is_left_as_it_was():
    network = Sound().eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert check_contract(network, X, Y, 10, "m") == []
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert check_contract(Around(), X, Y, 10, "m") == [f"m {TRAIN}"]
    # Log-probabilities are logits.
    assert check_contract(Around(after=lambda z: z.log_softmax(dim=1)).eval(), X, Y, 10, "m") == []


TRAIN = "was in train mode; it is judged in eval mode: call model.eval() before handing it over"


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (Around(after=lambda z: (z / 50).softmax(dim=1)), "returns probabilities, not logits"),
        (Around(before=lambda x: x + 0.1 * torch.randn_like(x)), "draws random numbers.*--suite rand"),
        (Around(before=F.dropout), "draws random numbers"),
        (Around(before=lambda x: x - x.mean(dim=0)), "other logits alone than beside others"),
        (Around(before=lambda x: (x * 8).round() / 8), "gradient of zero on 2 of 2 images"),
        (Around(before=torch.sign), "gradient of zero"),
        (Around(after=lambda z: 1e4 * z), "saturates the softmax on 2 of 2"),
        (Around(after=lambda z: z.bfloat16()), r"gives torch.bfloat16 logits"),
    ],
)
def test_each_doubt_is_one_line_with_what_to_do(network, says):
    # The label that it predicts: a wrong one would have a gradient however large the logits are.
    torch.manual_seed(0)
    y = network.eval()(X).argmax(dim=1)
    (line,) = check_contract(network, X, y, 10, "m")
    assert re.search(says, line), line
    assert "\n" not in line
    assert ": " in line or "; " in line or ", " in line


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (Around(before=clean_of_itself), "changes its input in place"),
        (Around(before=torch.Tensor.detach), "no gradient towards the images"),
        (Around(before=lambda x: (x - x).sqrt() + x), "NaN or infinite gradients"),
        (Around(after=lambda z: (z,)), "returns a tuple"),
        (Around(before=lambda x: x / (x.shape[0] > 1 or [])), "fails on one image alone"),
    ],
)
def test_what_no_number_could_come_of_is_refused_at_once(network, says):
    with pytest.raises(ModelError, match=says) as caught:
        check_contract(network.eval(), X, Y, 10, "m")
    assert "\n" not in str(caught.value)
