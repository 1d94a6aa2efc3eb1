"""One contract at every entrance: evaluate, autoattack, pgd and Step refuse the same networks in one line."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import robustill as rb
from robustill.core.errors import ConfigError, DataError, ModelError, RobustillError
from robustill.data.images import ImageDataset
from robustill.evaluation.transfer import transfer
from robustill.losses import ce, probabilities
from robustill.methods import AKD, AT, Clean, Method, Outcome, build_method
from robustill.methods.registry import METHODS
from robustill.models.loading import LoadedNetwork, Shape
from robustill.teachers.check import check_teacher

LEVELS = torch.randint(0, 256, (12, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
X, Y = LEVELS.float() / 255, torch.arange(12) % 4
DATA = ImageDataset(name="npz", split="test", images=LEVELS, labels=Y, classes=tuple("abcd"))
# Untrained networks guess, which evaluate says.


class Network(nn.Module):
    """Linear logits with a function before and one after; it is right on most of the images."""

    def __init__(self, before=lambda network, x: x, after=lambda network, z: z):
        super().__init__()
        flat = X.flatten(1) - 0.5
        self.weight = nn.Parameter(torch.linalg.lstsq(flat, torch.eye(4)[Y]).solution * 4)
        self.before, self.after = before, after

    def forward(self, x):
        return self.after(self, (self.before(self, x).flatten(1) - 0.5) @ self.weight)


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LazyLinear(4)

    def forward(self, x):
        return self.layer(x.flatten(1))


class Expanded(Network):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1).expand(3))


def subtract_silently(network, x):
    with torch.no_grad():
        x.sub_(0.5)
    return x


def finite_on_levels_only(network, x):
    """A network that gives NaN on every image whose pixels are not bytes."""
    levels = 255 * x.detach()
    return torch.where((levels - levels.round()).abs() < 1e-3, x, torch.full_like(x, torch.nan))


def evaluate(network):
    return rb.evaluate(network, DATA, threat="linf:0.02", suite="pgd-20", eps_curve=False, pictures=False)


def autoattack(network):
    return rb.autoattack(network, X.clone(), Y, "linf:0.02", version=("apgd-ce",), steps=5)


def pgd(network):
    return rb.pgd(lambda z: ce(network(z), Y), X.clone(), "linf:0.02", steps=2, step_size=0.01)


def step(network):
    x = X.clone()
    outcome = rb.Step(network, AT(), None, "linf:0.02", steps=2, step_size=0.01)(batch(x))
    assert torch.equal(x, X)
    return outcome


def batch(x=X, y=Y):
    return rb.Batch(x=x, y=y, index=torch.arange(len(y)))


ENTRANCES = [evaluate, autoattack, pgd, step]
BROKEN_EVERYWHERE = {
    "tuple": lambda: Network(after=lambda network, z: (z,)),
    "numpy": lambda: Network(after=lambda network, z: z.detach().numpy()),
    "detached": lambda: Network(after=lambda network, z: z.detach()),
    "in place": lambda: Network(before=lambda network, x: x.sub_(0.5)),
    "in place, silently": lambda: Network(before=subtract_silently),
    "grey images": lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(32, 4)),
}


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("name", BROKEN_EVERYWHERE)
def test_every_entrance_refuses_a_broken_network_in_one_line(entrance, name):
    with pytest.raises(RobustillError) as caught:
        entrance(BROKEN_EVERYWHERE[name]())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entrance", "network", "message"),
    [
        *((each, lambda: Network(after=lambda n, z: z.squeeze()), "for one image alone") for each in (evaluate, step)),
        (autoattack, lambda: Network(after=lambda n, z: z.squeeze()), "for one image alone"),
        *((each, Lazy, "lazy layers") for each in (evaluate, autoattack, step)),
        (step, lambda: Network(after=lambda n, z: (z, z) if n.training else z), "in train mode returns a tuple"),
        (step, lambda: Network().requires_grad_(False), "no weights to train"),
        (step, Expanded, "expanded buffer, mean"),
        (step, lambda: Network(before=lambda n, x: x.sub_(0.5) if n.training else x), "changes its input in place"),
    ],
)
def test_what_an_entrance_needs_is_checked_there(entrance, network, message):
    with pytest.raises(ModelError, match=message):
        entrance(network())


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_a_sound_network_passes_every_entrance_without_a_warning(entrance):
    network = Network().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        entrance(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network, X[:2])
    entrance(traced)


def test_pixels_that_nobody_means_are_recorded_at_every_entrance():
    dark = dataclasses.replace(DATA, images=LEVELS // 100)
    settings = {"threat": rb.Threat(norm="linf", eps=0.02), "suite": "pgd-20"}
    network = LoadedNetwork(module=Network(), spec="n", sha256="", shape=Shape.of(dark), architecture="n")
    found = [
        rb.evaluate(Network(), dark, **settings, eps_curve=False, pictures=False).conditions["warnings"],
        transfer({"a": Network(), "b": Network()}, dark, **settings).conditions["warnings"],
        check_teacher(network, dark, threat=settings["threat"]).warnings,
    ]
    for lines in found:
        assert [line.partition(",")[0] for line in lines if "npz" in line] == ["npz (test): no pixel is above 2 of 255"]


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_a_network_with_extra_state_passes_every_entrance(entrance):
    class Counting(Network):
        def get_extra_state(self):
            return {"calls": 3}

    entrance(Counting().eval())


@pytest.mark.parametrize("entrance", [evaluate, autoattack, pgd])
def test_a_nan_just_off_the_clean_images_is_never_robust(entrance):
    with pytest.raises(ModelError, match="NaN"):
        entrance(Network(before=finite_on_levels_only).eval())


@pytest.mark.parametrize("version", ["apgd-ce", "apgd-t", "fab", "fab-t", "square"])
@pytest.mark.parametrize("norm", ["linf:0.02", "l2:0.3"])
def test_no_stage_of_autoattack_takes_a_nan_for_robust(version, norm):
    network = Network(before=finite_on_levels_only).eval()
    budgets = {"queries": 20} if version == "square" else {"steps": 5}
    with pytest.raises(ModelError, match="NaN or infinite logits or gradients"):
        rb.autoattack(network, X, Y, norm, version=(version,), **budgets)


@pytest.mark.parametrize("bound", [torch.sigmoid, torch.tanh, lambda z: z.softmax(dim=1)])
@pytest.mark.parametrize("entrance", [autoattack, step])
def test_bounded_outputs_are_warned_about(entrance, bound):
    with pytest.warns(UserWarning, match="not logits"):
        entrance(
            Network(after=lambda network, z: bound(z)).eval()
            if entrance is autoattack
            else Network(after=lambda network, z: bound(z))
        )


def test_bounded_outputs_are_a_warning_of_an_evaluation():
    lines = evaluate(Network(after=lambda network, z: z.sigmoid()).eval()).conditions["warnings"]
    assert any("returns bounded values (as of a sigmoid), not logits" in line for line in lines)


def test_tiny_logits_keep_their_prediction_as_probabilities():
    logits = torch.tensor([[0.0, 0.0, 1e-10], [3.0, 1.0, 2.0]])
    p = probabilities(logits)
    assert p.argmax(dim=1).tolist() == [2, 0]
    assert torch.equal(p[1], logits[1].softmax(dim=0))
    records = evaluate(Network(after=lambda network, z: 1e-10 * z).eval())
    predicted = records.clean_probabilities.argmax(axis=1) == records.label
    np.testing.assert_array_equal(predicted, records.clean_correct)
    assert predicted.mean() > 0.9


def test_autoattack_says_that_a_network_guesses():
    x, y = X.repeat(3, 1, 1, 1), Y.repeat(3)
    with pytest.warns(UserWarning, match="no better than guessing among 4 classes: right on 0 of 36 clean images"):
        rb.autoattack(Network().eval(), x, (y + 1) % 4, "linf:0.02", version=("apgd-ce",), steps=1)


def test_images_outside_their_range_are_refused():
    for x in (255 * X, X - 1, X * float("nan")):
        with pytest.raises(DataError, match=r"expected \[0,1\]"):
            rb.pgd(lambda z: z.sum(dim=(1, 2, 3)), x, "linf:0.02", steps=1, step_size=0.01)
        with pytest.raises(DataError, match=r"expected \[0,1\]"):
            rb.Step(Network(), AT(), None, "linf:0.02", steps=1, step_size=0.01)(batch(x))


@pytest.mark.parametrize("values", [lambda z: z.sum(), lambda z: z.flatten(1), lambda z: 1.0])
def test_a_loss_is_one_value_an_image(values):
    with pytest.raises(ModelError, match=r"expected one value for each image, \[12\]"):
        rb.pgd(values, X, "linf:0.02", steps=1, step_size=0.01)


def test_the_checks_leave_network_and_random_numbers_as_they_were():
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(48), nn.Dropout(0.5), nn.Linear(48, 4)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    one = rb.Step(network, Clean(), None, "linf:0.02", steps=1, step_size=0.01)
    torch.manual_seed(3)
    found = one(batch()).loss
    network.load_state_dict(before)
    one.is_checked = dict.fromkeys(one.is_checked, True)
    torch.manual_seed(3)
    assert torch.equal(one(batch()).loss, found)


def test_a_step_checks_its_networks_once():
    calls = []
    network = Network(before=lambda n, x: calls.append(len(x)) or x)
    one = rb.Step(network, Clean(), None, "linf:0.02", steps=1, step_size=0.01)
    one(batch())
    calls.clear()
    one(batch())
    assert calls == [12]


def test_labels_and_teachers_must_fit_the_student():
    with pytest.raises(DataError, match="y has labels from 0 to 4, expected 0 to 3"):
        rb.Step(Network(), AT(), None, "linf:0.02", steps=1, step_size=0.01)(batch(y=Y + (Y == 3)))
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(48, 7))
    with pytest.raises(ModelError, match="the teacher robust gives 7 logits"):
        rb.Step(Network(), AKD(), teacher, "linf:0.02", steps=1, step_size=0.01)(batch())


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.roles])
def test_a_step_without_its_teachers_is_refused(name):
    method = build_method(name)
    given = [None, Network()] if len(method.roles) > 1 else [None, nn.ModuleDict({method.roles[0]: Network()})]
    for teacher in given:
        with pytest.raises(ConfigError, match="teacher"):
            rb.Step(Network(), method, teacher, "linf:0.02", steps=1, step_size=0.01)


class Forgetful(Method):
    def __init__(self):
        self.alpha = 1.0


class ForgetfulWithNetwork(Method):
    def __init__(self):
        self.head = nn.Linear(1, 1)


class Outer(AT):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def outer(self, batch, x_adv, student, teacher):
        return self.change(super().outer(batch, x_adv, student, teacher))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda outcome: outcome.loss, "returns a Tensor from outer"),
        (lambda outcome: None, "returns a NoneType from outer"),
        (lambda outcome: Outcome(loss=outcome.loss.mean(), logits=outcome.logits), r"loss of shape \[\]"),
        (lambda outcome: Outcome(loss=outcome.loss.detach(), logits=outcome.logits), "loss without a gradient"),
    ],
)
def test_a_method_returns_an_outcome(change, message):
    with pytest.raises(ConfigError, match=message):
        rb.Step(Network(), Outer(change), None, "linf:0.02", steps=1, step_size=0.01)(batch())


def test_a_method_is_initialised():
    for method in (Forgetful(), AT, "at"):
        with pytest.raises(ConfigError, match=r"super\(\).__init__|expected a robustill.Method"):
            rb.Step(Network(), method, None, "linf:0.02", steps=1, step_size=0.01)
    for name in ("Forgetful", "ForgetfulWithNetwork"):
        with pytest.raises(ConfigError, match=r"call super\(\).__init__\(\)"):
            build_method(f"{__name__}:{name}")
