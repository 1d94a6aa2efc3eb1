"""EMA, SWA and the estimation of BatchNorm statistics are compared with plain loops."""

import copy

import pytest
import torch
from torch import nn

from robustill.models.fake_quantisation import fake_quantise, float_copy
from robustill.training.averaging import EMA, SWA, estimate_statistics


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def train_a_little(model, steps, after):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(steps):
        x = torch.rand(8, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        after()


def test_ema_is_that_of_a_plain_loop():
    model = network()
    ema = EMA(model, decay=0.7)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    seen = 0

    def compare():
        nonlocal seen
        decay = min(0.7, (1 + seen) / (10 + seen))
        for name, value in model.state_dict().items():
            mixed = decay * expected[name] + (1 - decay) * value
            expected[name] = mixed if value.is_floating_point() else value.clone()
        seen += 1
        ema.update(model)
        for name, value in ema.model.state_dict().items():
            torch.testing.assert_close(value, expected[name])

    train_a_little(model, 30, compare)
    assert ema.steps == seen == 30
    assert int(ema.model[1].num_batches_tracked) == 30
    assert not torch.equal(ema.model[1].running_mean, model[1].running_mean)
    assert not torch.equal(ema.model[0].weight, model[0].weight)


def test_ema_with_a_decay_of_zero_copies_the_model():
    model = network()
    ema = EMA(model, decay=0.0)
    train_a_little(model, 3, lambda: ema.update(model))
    for name, value in ema.model.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name])


def test_ema_of_a_network_that_rounds_rounds_too():
    model = fake_quantise(network()).train()
    ema = EMA(model, decay=0.9)
    expected, x = [], torch.rand(8, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    for scale in (1, 2, 4):
        model(scale * x)
        ema.update(model)
        current = model[0].input_range.clone()
        # Steps 1 and 2 have the decays 2/11 and 3/12.
        share = {1: 1.0, 2: 9 / 11, 4: 9 / 12}[scale]
        expected.append(current if scale == 1 else expected[-1] + share * (current - expected[-1]))
        torch.testing.assert_close(ema.model[0].input_range, expected[-1])
    plain = float_copy(ema.model).eval()
    assert not torch.allclose(ema.model(x), plain(x), atol=1e-6)
    low, high = ema.model[0].input_range
    torch.testing.assert_close(ema.model(100 * x), ema.model((100 * x).clamp(low, high)))


def test_ema_does_not_change_the_model_and_is_frozen():
    model = network().train()
    ema = EMA(model, decay=0.9)
    before = copy.deepcopy(model.state_dict())
    ema.update(model)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in ema.model.modules())
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())


def test_ema_updates_a_shared_weight_once_a_step():
    shared = nn.Linear(2, 2, bias=False)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    ema = EMA(model, decay=0.0)
    start = shared.weight.detach().clone()
    with torch.no_grad():
        shared.weight.add_(1.0)
    ema.decay = 0.05
    ema.update(model)
    torch.testing.assert_close(ema.model[0].weight, start + 0.95)
    assert ema.model[0].weight is ema.model[2].weight


def test_swa_is_the_mean_over_epochs():
    model, seen = network(), []
    swa = SWA(model)

    def take():
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        swa.update(model)

    train_a_little(model, 5, take)
    assert swa.count == 5
    for name, parameter in swa.model.named_parameters():
        torch.testing.assert_close(parameter.data, torch.stack([each[name] for each in seen]).mean(dim=0))
        assert not parameter.requires_grad
    assert torch.equal(swa.model[1].running_mean, seen[-1]["1.running_mean"])
    assert not swa.model.training
    assert model.training


def test_swa_of_one_epoch_is_that_epoch():
    model, other = network(0), network(1)
    swa = SWA(model)
    swa.update(other)
    assert all(torch.equal(a, b) for a, b in zip(swa.model.parameters(), other.parameters(), strict=True))


def test_statistics_are_those_of_all_images():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(18, 4), nn.BatchNorm1d(4)).eval()
    model[0].running_mean.fill_(9.0)
    images = torch.rand(20, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    estimate_statistics(model, images.split(8))
    # Nothing was dropped: that would draw from the global generator.
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(model[0].running_mean, images.mean(dim=(0, 2, 3)))
    variances = torch.stack([part.var(dim=(0, 2, 3)) * len(part) for part in images.split(8)]).sum(dim=0) / 20
    torch.testing.assert_close(model[0].running_var, variances)
    assert (model[0].momentum, model[4].momentum) == (0.1, 0.1)
    assert not any(module.training for module in model.modules())
    again = {name: value.clone() for name, value in model.state_dict().items()}
    estimate_statistics(model, images.split(8))
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, again[name])


def test_statistics_of_frozen_parts_do_not_change():
    model = nn.Sequential(nn.Sequential(nn.BatchNorm1d(3)), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    images = torch.rand(10, 3, generator=torch.Generator().manual_seed(0)) + 2
    estimate_statistics(model, [images], frozen=["0", "3"])
    assert model[0][0].running_mean.tolist() == model[3].running_mean.tolist() == [0, 0, 0]
    # What is frozen computes with the statistics that it has.
    torch.testing.assert_close(model[1].running_mean, images.mean(dim=0) / (1 + model[0][0].eps) ** 0.5)


def test_no_batch_is_computed_without_batchnorm():
    def batches():
        raise AssertionError("asked")
        yield

    estimate_statistics(nn.Linear(2, 2), batches())


def test_modes_and_momenta_are_restored_after_an_exception():
    model = network().train()
    with pytest.raises(RuntimeError):
        estimate_statistics(model, iter([torch.rand(4, 3), torch.rand(4, 5)]))
    assert all(module.training for module in model.modules())
    assert model[1].momentum == 0.1
