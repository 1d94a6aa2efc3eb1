"""Layers that round as an int8 file does: the rounding by hand, its gradient, training, and what is exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from helpers.small_runs import small_config
from robustill.core.distributed import ProcessGroup
from robustill.core.errors import ConfigError, ModelError
from robustill.models.export import export_network
from robustill.models.fake_quantisation import RANGE, fake_quantise, float_copy, is_fake_quantised
from robustill.models.loading import load_network
from robustill.models.registry import build
from robustill.training import setup
from robustill.training.loop import train


def rounded_by_hand(x: Tensor, scale: Tensor | float, zero_point: Tensor | float, low: int, high: int) -> Tensor:
    return ((x / scale + zero_point).round().clamp(low, high) - zero_point) * scale


def test_a_layer_is_the_formula() -> None:
    draws = torch.Generator().manual_seed(0)
    plain = nn.Conv2d(3, 4, 3, padding=1)
    x = torch.randn(2, 3, 5, 5, generator=draws)
    layer = fake_quantise(nn.Sequential(plain)).train()
    found = layer(x)
    weight_scale = plain.weight.detach().abs().flatten(1).amax(1)[:, None, None, None] / 127
    weight = rounded_by_hand(plain.weight.detach(), weight_scale, 0, -127, 127)
    scale = (x.max() - x.min()) / 255
    image = rounded_by_hand(x, scale, (-x.min() / scale).round(), 0, 255)
    expected = nn.functional.conv2d(image, weight, plain.bias, padding=1)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(layer[0].input_range, torch.stack([x.min(), x.max()]))


def test_the_range_is_a_moving_average_of_batches_in_train_mode() -> None:
    layer = fake_quantise(nn.Linear(2, 2))
    assert layer.input_range.isnan().all()
    layer.eval()(torch.ones(1, 2))
    assert layer.input_range.isnan().all(), "eval mode changes nothing"
    layer.train()(torch.tensor([[-1.0, 3.0]]))
    layer(torch.tensor([[0.0, 1.0]]))
    assert torch.allclose(layer.input_range, torch.tensor([-0.95, 2.9]))
    before = layer.input_range.clone()
    layer.eval()(torch.full((1, 2), 100.0))
    assert torch.equal(layer.input_range, before)


def test_the_gradient_is_straight_through_within_the_range() -> None:
    layer = fake_quantise(nn.Linear(1, 1, bias=False))
    nn.init.constant_(layer.weight, 0.5)
    layer.train()(torch.tensor([[0.0], [2.0]]))
    x = torch.tensor([[1.0], [5.0]], requires_grad=True)
    layer.eval()(x).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == pytest.approx([0.5, 0.0]), "outside the range nothing changes"


def test_folding_a_batchnorm_changes_no_rounding() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3))
    nn.init.uniform_(network[1].weight, -2, 2)
    nn.init.uniform_(network[1].running_var, 0.5, 3)
    fake_quantise(network).train()(torch.rand(4, 2, 6, 6))
    network.eval()
    folded = nn.utils.fuse_conv_bn_eval(network[0], network[1])
    x = torch.rand(2, 2, 6, 6)
    assert torch.allclose(folded(x), network(x), atol=1e-5)


def test_a_float_copy_has_the_weights_and_no_rounding() -> None:
    network = build("resnet8", num_classes=4, in_channels=1, image_size=8, width=2, seed=0, quantize="int8")
    plain = build("resnet8", num_classes=4, in_channels=1, image_size=8, width=2, seed=0)
    assert is_fake_quantised(network)
    assert not is_fake_quantised(plain)
    network(torch.rand(2, 1, 8, 8))
    copied = float_copy(network).load_state_dict(plain.state_dict())
    assert copied.missing_keys == []
    assert copied.unexpected_keys == []
    assert is_fake_quantised(network), "the network itself still rounds"


def test_another_width_of_numbers_is_refused() -> None:
    with pytest.raises(ModelError, match="quantize 'int4' is unknown"):
        build("resnet8", num_classes=4, quantize="int4")
    with pytest.raises(ConfigError, match="int8"):
        small_config(model={"quantize": "int4"})


@pytest.mark.filterwarnings("ignore:.*no better than guessing")
def test_a_student_is_finished_from_a_float_one_and_exported(tmp_path: Path) -> None:
    train(small_config(), tmp_path / "float", progress=False)
    values = {"initial": f"run:{tmp_path / 'float'}@best", "model": {"quantize": "int8"}}
    train(small_config(**values), tmp_path / "finished", progress=False)
    network = load_network(f"run:{tmp_path / 'finished'}@best")
    assert network.architecture == "resnet8 width=2 quantize=int8"
    ranges = [value for key, value in network.module.state_dict().items() if key.endswith(RANGE)]
    assert ranges
    assert all(bool((each[0] < each[1]).item()) for each in ranges)
    x = torch.rand(8, 1, 8, 8)
    exported = export_network(f"run:{tmp_path / 'finished'}@best", tmp_path / "folder")
    assert not is_fake_quantised(exported.module)
    with torch.no_grad():
        change = (exported.module(x) - network.module(x)).abs().max()
        assert 0 < change < 0.1 * exported.module(x).abs().max(), "near, but not rounded"


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "process_group", lambda: ProcessGroup(rank=0, world_size=2))
    with pytest.raises(ConfigError, match=r"model\.quantize: .*train with one process"):
        train(small_config(model={"quantize": "int8"}), tmp_path / "run", progress=False)
