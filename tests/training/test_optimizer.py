"""Schedules, parameter groups and optimizer steps are compared with torch and with formulas."""

import itertools
import math
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import robustill as rb
from robustill.config.files import named_code
from robustill.config.schema import Config
from robustill.core.errors import ConfigError
from robustill.core.user_code import UntrustedCodeError, only_named
from robustill.training.optimizer import build_optimizer, parameter_groups, rate_factor

STEPS = 40


def factors(schedule, warmup=0.0, milestones=(), decay=0.1):
    return [
        rate_factor(step / STEPS, schedule, warmup=warmup, milestones=list(milestones), decay=decay)
        for step in range(STEPS)
    ]


def rates_of(make_scheduler):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("warmup", [0.1, 0.4, 0.5])
def test_onecycle_is_torchs_with_linear_phases(warmup):
    # torch ends its phases on the steps pct·total − 1 and total − 1: one step more makes them ours.
    expected = rates_of(
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=1.0,
            total_steps=STEPS + 1,
            pct_start=(warmup * STEPS + 1) / (STEPS + 1),
            anneal_strategy="linear",
            cycle_momentum=False,
            div_factor=1e9,
            final_div_factor=1e9,
        )
    )
    assert factors("onecycle", warmup) == pytest.approx(expected, abs=1e-8)


def test_multistep_is_torchs():
    expected = rates_of(lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [10, 28], gamma=0.2))
    assert factors("multistep", milestones=(0.25, 0.7), decay=0.2) == pytest.approx(expected, rel=1e-12)


def test_cosine_is_torchs():
    expected = rates_of(lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS))
    assert factors("cosine") == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "multistep", "constant"])
def test_the_warm_up_is_linear_to_the_peak(schedule):
    found = factors(schedule, warmup=0.25, milestones=(0.5,))
    assert found[:10] == pytest.approx([step / 10 for step in range(10)])
    assert found[10] == pytest.approx(1.0)
    assert max(found) <= 1.0
    assert all(later <= earlier for earlier, later in itertools.pairwise(found[10:]))
    assert found[-1] == pytest.approx(
        {"onecycle": 1 / 30, "cosine": 0.5 * (1 + math.cos(math.pi * 29 / 30)), "multistep": 0.1, "constant": 1.0}[
            schedule
        ]
    )


def test_a_warm_up_over_the_whole_run():
    assert factors("onecycle", warmup=1.0) == pytest.approx([step / STEPS for step in range(STEPS)])


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))


def test_weight_decay_excludes_batchnorm_and_biases():
    model = network()
    decayed, free = parameter_groups([model], 0.1, decay_all=False)
    assert [id(p) for p in decayed["params"]] == [id(model[0].weight), id(model[3].weight)]
    assert {id(p) for p in free["params"]} == {id(p) for p in [model[0].bias, *model[1].parameters(), model[3].bias]}
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    (everything,) = parameter_groups([model], 0.1, decay_all=True)
    assert (len(everything["params"]), everything["weight_decay"]) == (6, 0.1)


def test_groups_exclude_frozen_parameters():
    model, method = network(), nn.Linear(1, 1)
    model[0].requires_grad_(False)
    groups = parameter_groups([model, method], 0.1, decay_all=False)
    assert sum(len(group["params"]) for group in groups) == 4 + 2
    assert id(model[0].weight) not in {id(p) for group in groups for p in group["params"]}


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_takes_the_step_of_the_formula(nesterov):
    # v ← m·v + (g + λ·w);  w ← w − lr·(v, or g + λ·w + m·v with Nesterov); λ only on the weight matrix.
    model = nn.Linear(2, 1)
    lr, momentum, decay = 0.1, 0.9, 0.01
    optimizer = build_optimizer(
        [model], "sgd", learning_rate=lr, weight_decay=decay, decay_all=False, momentum=momentum, nesterov=nesterov
    )
    expected = {"weight": model.weight.detach().clone(), "bias": model.bias.detach().clone()}
    speed = {"weight": torch.zeros(1, 2), "bias": torch.zeros(1)}
    for _ in range(3):
        optimizer.zero_grad()
        (3 * model.weight.sum() + 2 * model.bias.sum()).backward()
        optimizer.step()
        for name, slope, pull in (("weight", 3.0, decay), ("bias", 2.0, 0.0)):
            grad = slope + pull * expected[name]
            speed[name] = momentum * speed[name] + grad
            expected[name] = expected[name] - lr * (grad + momentum * speed[name] if nesterov else speed[name])
    torch.testing.assert_close(model.weight.detach(), expected["weight"])
    torch.testing.assert_close(model.bias.detach(), expected["bias"])


def test_adamw_decays_only_the_weight_matrix():
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone(), model.bias.detach().clone()
    optimizer = build_optimizer(
        [model], "adamw", learning_rate=0.1, weight_decay=0.5, decay_all=False, momentum=0.9, nesterov=True
    )
    model.weight.grad, model.bias.grad = torch.zeros(1, 2), torch.zeros(1)
    optimizer.step()
    # With no gradient AdamW moves by its decoupled decay alone.
    torch.testing.assert_close(model.weight.detach(), before[0] * (1 - 0.1 * 0.5))
    torch.testing.assert_close(model.bias.detach(), before[1])


# --- optimizers of others


class Scaled(torch.optim.SGD):
    """As a user writes it: takes parameter groups and a learning rate."""

    def __init__(self, params, lr):
        super().__init__(params, lr=lr * 2)


class Closing(torch.optim.SGD):
    def step(self, closure):
        return super().step(closure)


def other_optimizer(name):
    model = nn.Linear(2, 1)
    return build_optimizer(
        [model], name, learning_rate=0.1, weight_decay=0.5, decay_all=False, momentum=0.7, nesterov=False
    )


def test_an_optimizer_by_import_path_gets_the_groups_and_the_learning_rate(monkeypatch):
    monkeypatch.setitem(
        sys.modules, "my_optim", SimpleNamespace(Scaled=Scaled, Closing=Closing, number=3, no=lambda *_, **__: 3)
    )
    optimizer = other_optimizer("my_optim:Scaled")
    assert isinstance(optimizer, Scaled)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.2, 0.5), (0.2, 0.0)]
    for name, message in (
        ("my_optim:Closing", "my_optim:Closing needs 'closure' in each step"),
        ("my_optim:number", "my_optim has no class 'number'"),
        ("my_optim:no", "my_optim:no is a int, expected a torch.optim.Optimizer"),
        ("my_optim.py:Scaled", "names a file: write its module, my_optim:Scaled"),
        ("no_such_module:Scaled", "cannot import 'no_such_module'"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            other_optimizer(name)
        assert "\n" not in str(caught.value)
    with only_named(origin="a file"), pytest.raises(UntrustedCodeError, match="my_optim:Scaled"):
        other_optimizer("my_optim:Scaled")


def test_an_optimizer_of_timm_gets_the_groups_the_learning_rate_and_the_momentum(monkeypatch):
    def create(groups, *, opt, lr, weight_decay, momentum):
        assert opt == "sgdp"
        return torch.optim.SGD(groups, lr=lr, weight_decay=weight_decay, momentum=momentum)

    optim = SimpleNamespace(list_optimizers=lambda: ["sgdp", "lamb"], create_optimizer_v2=create)
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(optim=optim))
    monkeypatch.setitem(sys.modules, "timm.optim", optim)
    optimizer = other_optimizer("timm:sgdp")
    rows = [(group["lr"], group["weight_decay"], group["momentum"]) for group in optimizer.param_groups]
    assert rows == [(0.1, 0.5, 0.7), (0.1, 0.0, 0.7)]
    with pytest.raises(ConfigError, match=r"optimizer timm:lam is unknown: did you mean lamb"):
        other_optimizer("timm:lam")


def test_the_configuration_takes_optimizers_of_others():
    assert named_code(Config(optim={"name": "my_optim:Scaled"})) == ("my_optim:Scaled",)
    assert named_code(Config(optim={"name": "timm:lamb"})) == ()
    with pytest.raises(ConfigError, match="optimizer 'adam' is unknown: expected sgd, adamw, my_pkg"):
        Config(optim={"name": "adam"})


def test_a_run_with_an_optimizer_of_the_user_resumes_to_the_same_weights(tmp_path, monkeypatch):
    class Own(torch.optim.RMSprop):
        def __init__(self, params, lr):
            super().__init__(params, lr=lr, momentum=0.5)

    class StoppedError(Exception):
        pass

    def stop(line):
        raise StoppedError

    monkeypatch.setitem(sys.modules, "my_optim", SimpleNamespace(Own=Own))
    settings = "--model resnet8 --model.width 2 --data.train_size 60 --data.validation 20 --optim.epochs 2".split()
    settings += "--attack.steps 1 --validation.steps 1 --optim.learning_rate 0.001 --optim.name my_optim:Own".split()
    config = rb.recipe("digits_at", settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rb.train(config, tmp_path / "whole", progress=False)
        with pytest.raises(StoppedError):
            rb.train(config, tmp_path / "cut", progress=False, on_epoch=stop)
        rb.train(config, tmp_path / "cut", progress=False)
    whole, cut = (rb.load_network(f"run:{tmp_path / name}@last").sha256 for name in ("whole", "cut"))
    assert whole == cut
