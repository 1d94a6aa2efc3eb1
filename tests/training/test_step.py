"""A training step: the attack, the calls of the networks, the state of the method."""

import pytest
import torch
from torch import Tensor, nn

from robustill.attacks import pgd
from robustill.core.errors import ConfigError
from robustill.core.randomness import generator
from robustill.losses import ce
from robustill.methods import AKD, AT, RSLAD, TRADES, Batch, Clean, Outcome
from robustill.threat import Threat
from robustill.training.step import Step

THREAT = Threat(norm="linf", eps=0.1)


def network(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        model.train()(torch.rand(64, 1, 6, 6))
    return model


class Counted(nn.Module):
    """A network that records its images, its mode and the dtype of its logits at every call."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside
        self.seen = []

    def forward(self, x):
        logits = self.inside(x)
        self.seen.append((x.detach().clone(), self.training, logits.dtype))
        return logits

    def times(self, x):
        return sum(torch.equal(x, seen) for seen, _, _ in self.seen)


@pytest.fixture
def batch():
    x = torch.rand(8, 1, 6, 6, generator=generator(0, "images"))
    return Batch(x=x, y=torch.arange(8) % 3, index=torch.arange(8))


def make(method, teacher=None, student=None, **settings):
    settings = {"steps": 3, "step_size": 0.04, **settings}
    step = Step(network() if student is None else student, method, teacher, THREAT, **settings)
    # The passes of the checks in the first step are not counted.
    step.is_checked = dict.fromkeys(step.is_checked, True)
    return step


def statistics(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_a_step_attacks_in_eval_mode_then_computes_the_loss(batch):
    student = network()
    step = make(AT(), student=student).train()
    outcome = step(batch, generator(0, "attack"))
    by_hand = network().eval()
    x_adv = pgd(
        lambda z: ce(by_hand(z), batch.y), batch.x, THREAT, steps=3, step_size=0.04, generator=generator(0, "attack")
    )
    expected = ce(by_hand.train()(x_adv), batch.y)
    torch.testing.assert_close(outcome.loss, expected)
    outcome.loss.mean().backward()
    expected.mean().backward()
    for own, other in zip(student.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)


def test_the_attack_does_not_change_the_student(batch):
    student = network().train()
    student[0].weight.requires_grad_(False)
    before = statistics(student)
    x_adv = make(AT(), student=student).attack(batch, generator(0))
    assert THREAT.contains(x_adv, batch.x).all()
    assert not torch.equal(x_adv, batch.x)
    assert all(module.training for module in student.modules())
    assert [parameter.requires_grad for parameter in student.parameters()] == [False] + [True] * 5
    assert all(parameter.grad is None for parameter in student.parameters())
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


@pytest.mark.parametrize(("batchnorm", "moves"), [("eval", 1), ("train", 4)])
def test_how_often_the_running_statistics_move(batch, batchnorm, moves):
    # Three passes of the attack and one of the loss.
    student = network().train()
    before = int(student[1].num_batches_tracked)
    make(AT(), student=student, batchnorm=batchnorm)(batch, generator(0))
    assert int(student[1].num_batches_tracked) - before == moves


@pytest.mark.parametrize("method", [RSLAD(), AKD()])
def test_a_teacher_computes_once_on_the_images_it_is_given(batch, method):
    teacher = Counted(network(1))
    student = Counted(network())
    step = make(method, teacher, student).train()
    outcome = step(batch, generator(0))
    assert len(teacher.seen) == 1
    assert teacher.times(batch.x) == (1 if isinstance(method, RSLAD) else 0)
    # The student's last images of RSLAD, whose forward is in two passes, and the only ones of AKD, are adversarial.
    x_adv = student.seen[-1][0]
    assert THREAT.contains(x_adv, batch.x).all()
    if isinstance(method, AKD):
        assert teacher.times(x_adv) == 1
    assert outcome.loss.shape == (8,)


def test_the_teacher_computes_again_on_another_batch(batch):
    teacher = Counted(network(1))
    step = make(RSLAD(), teacher)
    step(batch, generator(0))
    step(Batch(x=batch.x * 0.99, y=batch.y, index=batch.index), generator(0))
    assert (teacher.times(batch.x), len(teacher.seen)) == (1, 2)


def test_the_teacher_computes_again_in_another_step(batch):
    teacher = Counted(network(1))
    step = make(RSLAD(), teacher)
    for _ in range(2):
        step(batch, generator(0))
    assert (teacher.times(batch.x), len(teacher.seen)) == (2, 2)


def test_teachers_by_role_compute_once_each(batch):
    robust, natural = Counted(network(1)), Counted(network(2))

    class Both(AT):
        roles = ("robust", "natural")

        def outer(self, batch, x_adv, student, teacher):
            with torch.no_grad():
                first = teacher["robust"](batch.x) + teacher["natural"](batch.x)
                assert torch.equal(first, teacher["robust"](batch.x) + teacher["natural"](batch.x))
            return super().outer(batch, x_adv, student, teacher)

    make(Both(), nn.ModuleDict({"robust": robust, "natural": natural}))(batch, generator(0))
    assert (len(robust.seen), len(natural.seen)) == (1, 1)


def test_a_teacher_is_frozen_and_not_part_of_the_state(batch):
    teacher = network(1).train()
    before = statistics(teacher)
    step = make(AKD(), teacher).train()
    step(batch, generator(0)).loss.mean().backward()
    assert not any(module.training for module in teacher.modules())
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert len(list(step.parameters())) == len(list(step.student.parameters()))
    assert all(key.startswith("student.") for key in step.state_dict())


def test_only_the_given_generator_is_used(batch):
    torch.manual_seed(0)
    one = make(AT())(batch, generator(5)).loss
    torch.manual_seed(1)
    assert torch.equal(make(AT())(batch, generator(5)).loss, one)
    assert not torch.equal(make(AT())(batch, generator(6)).loss, one)


def test_the_start_is_the_methods_own_by_default(batch):
    near = make(TRADES(), steps=0).attack(batch, generator(0))
    assert (near - batch.x).abs().max() < 0.01
    assert torch.equal(make(TRADES(), steps=0, start="clean").attack(batch, generator(0)), batch.x)
    assert torch.equal(make(TRADES(), steps=0).attack(batch, generator(0), start="clean"), batch.x)


def test_a_method_without_an_adversary_uses_clean_images(batch):
    student = Counted(network())
    make(Clean(), student=student)(batch, generator(0))
    assert (student.times(batch.x), len(student.seen)) == (1, 1)


@pytest.mark.parametrize("method", [AT(), AKD(), TRADES()])
def test_bf16_computes_networks_in_bf16_and_losses_in_float32(batch, method):
    student, teacher = Counted(network()), Counted(network(1))
    outcome = make(method, teacher, student, precision="bf16").train()(batch, generator(0))
    assert {kind for _, _, kind in student.seen + teacher.seen} == {torch.bfloat16}
    assert all(images.dtype == torch.float32 for images, _, _ in student.seen)
    assert {outcome.loss.dtype, *(term.dtype for term in outcome.terms.values())} == {torch.float32}
    outcome.loss.mean().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in student.parameters())
    reference = make(method, network(1)).train()(batch, generator(0))
    # Rounded gradients lead single images elsewhere; the batch as a whole meets an attack as strong.
    torch.testing.assert_close(outcome.loss.mean(), reference.loss.mean(), rtol=0.1, atol=0)


def test_a_light_attack_gives_the_same_images(batch):
    student = network().train()
    light, plain = (make(AT(), student=student, light=light) for light in (True, False))
    for _ in range(2):  # a copy that did not follow the weights would miss the second time
        before = statistics(student)
        found = light.attack(batch, generator(0, "attack"))
        assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
        torch.testing.assert_close(found, plain.attack(batch, generator(0, "attack")), atol=1e-5, rtol=0)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.mul_(-0.7)
    assert dict(light.named_parameters()).keys() == dict(plain.named_parameters()).keys()
    assert light.state_dict().keys() == plain.state_dict().keys()


def test_a_student_that_cannot_be_copied_is_attacked_itself(batch):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.scale * x.flatten(1)[:, :3] * (2.0 if x.mean() > 0 else 1.0)

    student = Counted(Branching())
    make(AT(), student=student, light=True)(batch, generator(0))
    assert len(student.seen) == 4
    torch.testing.assert_close(
        make(AT(), student=Branching(), light=True).attack(batch, generator(0)),
        make(AT(), student=Branching()).attack(batch, generator(0)),
    )


@pytest.mark.parametrize(("batchnorm", "moves"), [("eval", 1), ("train", 4)])
def test_a_light_attack_is_used_only_in_eval_mode(batch, batchnorm, moves):
    student = network()
    before = student[1].num_batches_tracked.item()
    make(AT(), student=student, batchnorm=batchnorm, light=True).train()(batch, generator(0))
    assert student[1].num_batches_tracked.item() - before == moves


class Remembering(AT):
    """PGD-AT that records the updates of its state."""

    def __init__(self):
        super().__init__()
        self.updates = []

    def update(self, batch, outcome):
        assert not torch.is_grad_enabled()
        self.updates.append(outcome.loss)


class Averaging(AT):
    def outer(self, batch, x_adv, student, teacher):
        outcome = super().outer(batch, x_adv, student, teacher)
        return Outcome(loss=outcome.loss.mean(), logits=outcome.logits)


def test_a_method_that_averages_its_loss_is_refused(batch):
    with pytest.raises(
        ConfigError, match=r"method Averaging gives a loss of shape \[\]: expected one value a sample, \[8"
    ):
        make(Averaging())(batch, generator(0))


def test_the_methods_state_is_updated_once_a_step(batch):
    method = Remembering()
    step = make(method)
    outcomes = [step(batch, generator(0)) for _ in range(2)]
    step.attack(batch, generator(0))
    assert [id(loss) for loss in method.updates] == [id(outcome.loss) for outcome in outcomes]


class OwnLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


@pytest.mark.parametrize("product", [False, True])
def test_a_student_with_layers_of_its_own_is_trained_in_bf16(product: bool) -> None:
    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head, self.matrix = nn.Conv2d(1, 6, 3), OwnLinear(6, 4), nn.Parameter(torch.eye(4))

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.conv(x).mean((2, 3)))
            return torch.einsum("bi,ij->bj", logits, self.matrix) if product else logits

    x = torch.rand(6, 1, 6, 6, generator=generator(0, "images"))
    batch = Batch(x=x, y=torch.arange(6) % 4, index=torch.arange(6))
    step = Step(Student(), AT(), None, "linf:0.1", steps=2, step_size=0.1, precision="bf16", light=True)
    assert torch.isfinite(step(batch).loss).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("count", [1, 2])
def test_an_attack_from_noise_projects_no_step(batch, norm, count):
    threat = Threat(norm=norm, eps=0.1)
    step = Step(network(), AT(), None, threat, steps=2, step_size=0.1, noise=2.0)
    seen = []
    step.on_step = lambda part, logits: seen.append(logits.adversarial)
    student, x = network().eval(), batch.x
    x_adv = Threat(norm=norm, eps=0.2).start(x, generator(0, "attack"))
    for _ in range(2):
        x_adv = x_adv.detach().requires_grad_(True)
        (grad,) = torch.autograd.grad(ce(student(x_adv), batch.y).sum(), x_adv)
        size = grad.flatten(1).norm(dim=1)[:, None, None, None]
        x_adv = (x_adv + 0.1 * (grad.sign() if norm == "linf" else grad / size)).clamp(0, 1)
    if norm == "linf":
        assert (x_adv - x).abs().max() > 0.3
    list(step.eval().parts(batch, generator(0, "attack"), count))
    torch.testing.assert_close(torch.cat(seen), student(x_adv))


def test_noise_is_one_start_and_not_for_steps_that_need_the_projection():
    with pytest.raises(ConfigError, match="noise with the start clean"):
        make(AT(), noise=2.0, start="clean")
    with pytest.raises(ConfigError, match="noise with l1"):
        Step(network(), AT(), None, Threat(norm="l1", eps=1.0), steps=1, step_size=1.0, noise=2.0)
