"""Checks of networks: a sound network passes unchanged, and each defect has a line of its own."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustill.core.contract import check_contract, check_network, check_single_image, check_training
from robustill.core.errors import ConfigError, ModelError

X = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Constant(nn.Module):
    """A network that returns a given output, or raises a given error."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        if isinstance(self.output, Exception):
            raise self.output
        return self.output


def test_a_sound_network_passes_and_is_left_unchanged():
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(48), nn.Linear(48, 10)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    check_network(network, X, 10, "student")
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("network", "line"),
    [
        (nn.Conv2d(1, 4, 3), r"teacher t fails on images of shape \[2, 3, 4, 4\]: .*channels"),
        (
            Constant(AssertionError("Input height (4) doesn't match model (224)\nmore")),
            r"fails on .*: Input height \(4\)",
        ),
        (Constant(AssertionError()), r"fails on images of shape \[2, 3, 4, 4\]: AssertionError"),
        (Constant(KeyError("pixels")), r"fails on images of shape \[2, 3, 4, 4\]: 'pixels'"),
        (Constant((torch.zeros(2, 10),)), r"teacher t returns a tuple, expected a tensor of logits \[B,10\]"),
        (Constant(torch.zeros(2, 100)), "teacher t gives 100 logits, but the data has 10 classes"),
        (Constant(torch.zeros(2, 10, 1, 1)), r"teacher t returns shape \[2, 10, 1, 1\], expected \[2, 10\]"),
        (Constant(torch.full((2, 10), torch.nan)), "teacher t returns NaN or infinite logits"),
        (Constant(torch.full((2, 10), torch.inf)), "teacher t returns NaN or infinite logits"),
    ],
)
def test_each_defect_is_an_error_of_one_line(network, line):
    with pytest.raises(ModelError, match=line) as caught:
        check_network(network, X, 10, "teacher t")
    assert "\n" not in str(caught.value)


Y = torch.tensor([1, 3])
WEIGHT = torch.randn(48, 10, generator=torch.Generator().manual_seed(1))


class LinearNetwork(nn.Module):
    """Logits that are linear in the image, with a function before and a function after."""

    def __init__(self, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x):
        return self.after(self.before(x).flatten(1) @ WEIGHT)


def subtract_in_place(x):
    x.sub_(0.5)
    return x


class Sound(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(48), nn.Dropout(0.5), nn.Linear(48, 10))

    def forward(self, x):
        return self.body(x)


def test_a_sound_network_has_no_warnings():
    network = Sound().eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert check_contract(network, X, Y, 10, "m") == []
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert check_contract(LinearNetwork(), X, Y, 10, "m") == [f"m {TRAIN}"]
    # Log-probabilities are logits.
    assert check_contract(LinearNetwork(after=lambda z: z.log_softmax(dim=1)).eval(), X, Y, 10, "m") == []


TRAIN = "was in train mode; it is evaluated in eval mode: call model.eval() before passing it"


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (LinearNetwork(after=lambda z: (z / 50).softmax(dim=1)), "returns probabilities, not logits"),
        (LinearNetwork(before=lambda x: x + 0.1 * torch.randn_like(x)), "draws random numbers.*--suite rand"),
        (LinearNetwork(before=F.dropout), "draws random numbers"),
        (LinearNetwork(before=lambda x: x - x.mean(dim=0)), "other logits alone than in a batch"),
        (LinearNetwork(before=lambda x: (x * 8).round() / 8), "gradient of zero on 2 of 2 images"),
        (LinearNetwork(before=torch.sign), "gradient of zero"),
        (LinearNetwork(after=lambda z: 1e4 * z), "saturates the softmax on 2 of 2"),
        (LinearNetwork(after=lambda z: z.bfloat16()), r"gives torch.bfloat16 logits"),
    ],
)
def test_each_warning_is_one_line_with_what_to_do(network, message):
    # The predicted label: with another label the cross-entropy has a gradient however large the logits are.
    torch.manual_seed(0)
    y = network.eval()(X).argmax(dim=1)
    (line,) = check_contract(network, X, y, 10, "m")
    assert re.search(message, line), line
    assert "\n" not in line
    assert ": " in line or "; " in line or ", " in line


class Unkind(torch.autograd.Function):
    """The identity, whose backward pass fails by an exception that is no RuntimeError."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, grad):
        raise TypeError("no derivative here")


def test_weights_whose_gradient_fails_are_not_trained():
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
    network.register_forward_hook(lambda module, images, logits: Unkind.apply(logits))
    with pytest.raises(ModelError, match="s in train mode fails in its backward pass: no derivative here"):
        check_training(network, X, 10, "s")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("convert", [lambda network: network, torch.jit.script])
def test_a_network_that_cannot_be_trained_on_one_image_is_refused(convert):
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 10), nn.BatchNorm1d(10))
    with pytest.raises(ConfigError, match=r"the last batch has one image, on which the student cannot be trained"):
        check_single_image(convert(network), X[:1], "the last batch", "change it")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (LinearNetwork(before=subtract_in_place), "changes its input in place"),
        (LinearNetwork(before=torch.Tensor.detach), "no gradient towards the images"),
        (LinearNetwork(before=lambda x: (x - x).sqrt() + x), "NaN or infinite gradients"),
        (LinearNetwork(after=lambda z: (z,)), "returns a tuple"),
        (LinearNetwork(before=lambda x: x / (x.shape[0] > 1 or [])), "fails on one image alone"),
        (LinearNetwork(before=lambda x: Unkind.apply(x)), "m fails in its backward pass: no derivative here"),
    ],
)
def test_a_network_that_cannot_be_evaluated_is_refused(network, message):
    with pytest.raises(ModelError, match=message) as caught:
        check_contract(network.eval(), X, Y, 10, "m")
    assert "\n" not in str(caught.value)
