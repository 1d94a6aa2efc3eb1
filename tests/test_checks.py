import pytest
import torch
from torch import nn

from robustill.checks import check_network
from robustill.errors import ModelError

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
        (Gives(torch.zeros(2, 100)), r"teacher t returns shape \[2, 100\], expected \[2, 10\]"),
        (Gives(torch.zeros(2, 10, 1, 1)), r"teacher t returns shape \[2, 10, 1, 1\], expected \[2, 10\]"),
        (Gives(torch.full((2, 10), torch.nan)), "teacher t returns NaN or infinite logits"),
        (Gives(torch.full((2, 10), torch.inf)), "teacher t returns NaN or infinite logits"),
    ],
)
def test_each_thing_that_can_be_wrong_gets_one_line(network, line):
    with pytest.raises(ModelError, match=line) as caught:
        check_network(network, X, 10, "teacher t")
    assert "\n" not in str(caught.value)
