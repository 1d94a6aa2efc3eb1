"""The twin of a file: the same logits, and a gradient that passes straight through each rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

from helpers.evaluation_cases import trained
from helpers.onnx_files import clean_images, onnx_file
from robustill.models import MODELS, build, onnx_twin
from robustill.models.loading import Shape
from robustill.models.onnx import onnx_model
from robustill.models.onnx_file import OnnxNetwork, load_onnx
from robustill.models.onnx_twin import OnnxTwin, build_twin
from robustill.models.quantisation import quantised_model

SHAPE = Shape(num_classes=3, in_channels=1, image_size=(6, 6))
X = clean_images(5)


class StraightThroughRounding(torch.autograd.Function):
    """(x / scale) rounded and cut to 0..255, times the scale; the gradient is that of x inside."""

    @staticmethod
    def forward(ctx, x, scale):
        levels = (x / scale).round()
        ctx.save_for_backward((levels >= 0) & (levels <= 255))
        return levels.clamp(0, 255) * scale

    @staticmethod
    def backward(ctx, gradient):
        (inside,) = ctx.saved_tensors
        return gradient * inside, None


@pytest.mark.parametrize("batch", ["batch", 1])
@pytest.mark.parametrize("scale", [None, 0.25, 0.003])
def test_the_logits_are_the_files_and_the_gradient_passes_each_rounding(tmp_path: Path, batch, scale) -> None:
    network = trained().eval()
    file = load_onnx(onnx_file(tmp_path / "net.onnx", network, batch=batch, scale=scale), SHAPE).module
    twin = build_twin(file, (1, 6, 6))
    leaf = X.clone().requires_grad_(True)
    torch.testing.assert_close(twin(leaf).detach(), file(X), atol=1e-4, rtol=1e-4)

    def by_hand(h: torch.Tensor) -> torch.Tensor:
        for layer in network:
            h = layer(h)
            if isinstance(layer, nn.ReLU) and scale is not None:
                h = StraightThroughRounding.apply(h, scale)
        return h

    found, expected = (torch.autograd.grad(each(leaf)[:, 1].sum(), leaf)[0] for each in (twin, by_hand))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert (found.flatten(1).norm(dim=1) > 0).all()


def one_operator(path: Path, nodes: list, constants: dict[str, np.ndarray], opset: int = 20) -> OnnxNetwork:
    """A file of these nodes, from "x" [batch,2,6,6] to "h", behind which 2·H·W numbers are summed to two logits."""
    end = [
        helper.make_node("Flatten", ["h"], ["flat"]),
        helper.make_node("Gemm", ["flat", "last"], ["logits"]),
    ]
    graph = helper.make_graph(
        [*nodes, *end],
        "operator",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, 6, 6])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return load_onnx(path, Shape(num_classes=2, in_channels=2, image_size=(6, 6))).module


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


AXES, SIZES = np.array([2, 3]), np.array([0, -1, 9])
BOUNDS = [np.array(0.3, "f4"), np.array(0.6, "f4")]
CASES = {
    "MaxPool": ({"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, {}, 18),
    "AveragePool": ({"kernel_shape": [2, 2], "strides": [2, 2]}, {}, 18),
    "GlobalAveragePool": ({}, {}, 2),
    "ReduceMean": ({"keepdims": 0}, {"axes": AXES}, 2),
    "Reshape": ({}, {"sizes": SIZES}, 72),
    "Transpose": ({"perm": [0, 2, 3, 1]}, {}, 72),
    "Conv": ({"pads": [1, 0, 0, 2], "group": 2, "strides": [2, 1], "dilations": [1, 2]}, {"w": random(4, 1, 2, 2)}, 72),
    "Clip": ({}, {"low": BOUNDS[0], "high": BOUNDS[1]}, 72),
    "Sigmoid": ({}, {}, 72),
    "HardSigmoid": ({"alpha": 0.3}, {}, 72),
    "HardSwish": ({}, {}, 72),
    "LeakyRelu": ({"alpha": 0.2}, {}, 72),
    "MatMul": ({}, {"w": random(6, 6)}, 72),
    "Mul": ({}, {"w": random(2, 1, 1)}, 72),
    "Sub": ({}, {"w": random(2, 1, 1)}, 72),
    "Div": ({}, {"w": random(2, 1, 1) + 3}, 72),
    "Relu": ({}, {}, 72),
}


@pytest.mark.parametrize("name", CASES)
def test_each_operator_is_that_of_the_runtime(tmp_path: Path, name: str) -> None:
    attributes, constants, size = CASES[name]
    node = helper.make_node(name, ["x", *constants], ["h"], **attributes)
    file = one_operator(tmp_path / "net.onnx", [node], {**constants, "last": random(size, 2)})
    x = torch.rand(3, 2, 6, 6, generator=torch.Generator().manual_seed(1)) * 2 - 0.5
    torch.testing.assert_close(OnnxTwin(file)(x), file(x), atol=1e-4, rtol=1e-4)


def test_weights_with_a_scale_for_each_channel_are_read(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).integers(-128, 128, (4, 2, 3, 3)).astype(np.int8)
    scale = np.array([0.1, 0.01, 0.5, 0.002], np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["wf"], axis=0),
        helper.make_node("Conv", ["x", "wf"], ["h"]),
    ]
    constants = {"w": weight, "scale": scale, "zero": np.zeros(4, np.int8), "last": random(64, 2)}
    file = one_operator(tmp_path / "net.onnx", nodes, constants)
    x = torch.rand(3, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    maps = F.conv2d(x, torch.from_numpy(weight * scale[:, None, None, None]))
    expected = maps.flatten(1) @ torch.from_numpy(constants["last"])
    torch.testing.assert_close(OnnxTwin(file)(x), expected, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(file(x), expected, atol=1e-3, rtol=1e-4)


def test_there_is_no_twin_of_operators_that_are_not_known(tmp_path: Path) -> None:
    node = helper.make_node("Sin", ["x"], ["h"])
    file = one_operator(tmp_path / "net.onnx", [node], {"last": random(72, 2)})
    assert build_twin(file, (2, 6, 6)) is None


def test_a_twin_with_other_logits_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = load_onnx(onnx_file(tmp_path / "net.onnx", trained().eval()), SHAPE).module
    assert build_twin(file, (1, 6, 6)) is not None
    monkeypatch.setitem(onnx_twin._OPERATORS, "Relu", lambda given, _: given[0])
    assert build_twin(file, (1, 6, 6)) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", [each for each in MODELS if each != "resnet34"])
def test_each_of_our_networks_has_a_twin_in_float32_and_in_int8(tmp_path: Path, name: str) -> None:
    size, channels = (28, 1) if name in ("trades_smallcnn", "madry_cnn_tiny") else (32, 3)
    options = {"depth": 10, "width": 1} if name.startswith("wideresnet") else {}
    network = build(name, num_classes=10, in_channels=channels, image_size=size, seed=0, **options)
    x = torch.rand(32, channels, size, size, generator=torch.Generator().manual_seed(0))
    network.train()(x)
    program = torch.export.export(network.eval(), (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    float32 = onnx_model(program, "")
    shape = Shape(num_classes=10, in_channels=channels, image_size=(size, size))
    for content in (float32, quantised_model(float32, x)):
        (tmp_path / "net.onnx").write_bytes(content)
        assert build_twin(load_onnx(tmp_path / "net.onnx", shape).module, (channels, size, size)) is not None


@pytest.mark.parametrize("zero", [np.array(100, np.uint8), np.array(-20, np.int8)])
@pytest.mark.parametrize("is_shared", [False, True])
def test_a_pair_at_once_is_its_two_halves(tmp_path: Path, zero: np.ndarray, is_shared: bool) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["levels"]),
        helper.make_node("DequantizeLinear", ["levels", "scale", "zero"], ["h" if not is_shared else "a"]),
    ]
    if is_shared:
        nodes.append(helper.make_node("DequantizeLinear", ["levels", "other", "zero"], ["b"]))
        nodes.append(helper.make_node("Add", ["a", "b"], ["h"]))
    scales = {"scale": np.array(0.01, np.float32), "other": np.array(0.5, np.float32)}
    file = one_operator(tmp_path / "net.onnx", nodes, {**scales, "zero": zero, "last": random(72, 2)})
    twin = OnnxTwin(file)
    # Quantisation alone stays where another dequantisation reads it.
    assert [step[0].__name__ for step in twin.steps][:2] == (
        ["_quantise", "_round"] if is_shared else ["_round", "<lambda>"]
    )
    x = (torch.rand(3, 2, 6, 6, generator=torch.Generator().manual_seed(1)) * 6 - 3).requires_grad_(True)
    shift = torch.tensor(zero)

    def halves(scale: str) -> torch.Tensor:
        levels = onnx_twin._quantise([x, torch.tensor(scales["scale"]), shift], {})
        return onnx_twin._dequantise([levels, torch.tensor(scales[scale]), shift], {})

    values = halves("scale") + halves("other") if is_shared else halves("scale")
    expected = values.flatten(1) @ torch.tensor(random(72, 2))
    torch.testing.assert_close(twin(x), expected)
    (found,), (gradient,) = (torch.autograd.grad(each.sum(), x) for each in (twin(x), expected))
    torch.testing.assert_close(found, gradient)
    assert 0 < (found == 0).float().mean() < 1


@pytest.mark.parametrize("scale", ["computed", "left out"])
def test_a_pair_whose_scale_is_computed_or_whose_zero_point_is_left_out_has_a_twin(tmp_path: Path, scale: str) -> None:
    nodes = []
    inputs = ["scale", ""] if scale == "left out" else ["scale", "zero"]
    constants: dict[str, np.ndarray] = {"scale": np.array(0.01, np.float32)}
    if scale == "computed":
        constants = {"axes": np.array([0, 1, 2, 3]), "zero": np.array(0, np.uint8)}
        nodes.append(helper.make_node("ReduceMean", ["x", "axes"], ["scale"], keepdims=0))
    nodes.append(helper.make_node("QuantizeLinear", ["x", *inputs], ["levels"]))
    nodes.append(helper.make_node("DequantizeLinear", ["levels", *inputs], ["h"]))
    file = one_operator(tmp_path / "net.onnx", nodes, {**constants, "last": random(72, 2)})
    twin = build_twin(file, (2, 6, 6))
    assert twin is not None
    x = torch.rand(3, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(twin(x), file(x), atol=1e-4, rtol=1e-4)
