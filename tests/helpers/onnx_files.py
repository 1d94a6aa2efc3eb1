"""ONNX files of small networks, written node by node, also with a coarse quantisation of their activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn


def onnx_file(
    path: Path,
    network: nn.Sequential,
    image: Sequence[int | str] = (1, 6, 6),
    *,
    batch: int | str = "batch",
    scale: float | None = None,
    change: Callable[[onnx.ModelProto], None] = lambda model: None,
) -> Path:
    """Write a network of Conv2d, BatchNorm2d, ReLU, Flatten and Linear as an ONNX file.

    Args:
        path: the file.
        network: in eval mode.
        image: C, H and W; text for a size that is dynamic.
        batch: the first size.
        scale: that of a QuantizeLinear and a DequantizeLinear after each ReLU; None for a model in float32.
        change: what else to do to the model.
    """
    nodes, stored, last = [], [], "images"

    def keep(name: str, value: Tensor | np.ndarray) -> str:
        array = value.detach().numpy() if isinstance(value, Tensor) else value
        stored.append(numpy_helper.from_array(array, name))
        return name

    for number, layer in enumerate(network):
        names = {key: keep(f"{number}.{key}", value) for key, value in layer.state_dict().items() if value.ndim}
        out = f"value{number}"
        if isinstance(layer, nn.Conv2d):
            nodes.append(helper.make_node("Conv", [last, names["weight"], names["bias"]], [out]))
        elif isinstance(layer, nn.BatchNorm2d):
            order = [names[key] for key in ("weight", "bias", "running_mean", "running_var")]
            nodes.append(helper.make_node("BatchNormalization", [last, *order], [out], epsilon=layer.eps))
        elif isinstance(layer, nn.Linear):
            nodes.append(helper.make_node("Gemm", [last, names["weight"], names["bias"]], [out], transB=1))
        elif isinstance(layer, nn.Flatten):
            nodes.append(helper.make_node("Flatten", [last], [out]))
        else:
            assert isinstance(layer, nn.ReLU)
            nodes.append(helper.make_node("Relu", [last], [out]))
            if scale is not None:
                both = [keep(f"{number}.scale", np.array(scale, "f4")), keep(f"{number}.zero", np.array(0, "u1"))]
                nodes.append(helper.make_node("QuantizeLinear", [out, *both], [f"{out}q"]))
                nodes.append(helper.make_node("DequantizeLinear", [f"{out}q", *both], [f"{out}d"]))
                out = f"{out}d"
        last = out
    nodes.append(helper.make_node("Identity", [last], ["logits"]))
    num_classes = [each for each in network if isinstance(each, nn.Linear)][-1].out_features
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, *image])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, num_classes])],
        stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


class Coarse(nn.Module):
    """The rounding of a QuantizeLinear and a DequantizeLinear, whose gradient is zero."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, h: Tensor) -> Tensor:
        return (h / self.scale).round().clamp(0, 255) * self.scale


def coarse_network(network: nn.Sequential, scale: float) -> nn.Sequential:
    """The network that `onnx_file` writes with a scale, in torch."""
    layers: list[nn.Module] = []
    for layer in network:
        layers += [layer, Coarse(scale)] if isinstance(layer, nn.ReLU) else [layer]
    return nn.Sequential(*layers).eval()


def clean_images(number: int) -> Tensor:
    return torch.rand(number, 1, 6, 6, generator=torch.Generator().manual_seed(5))
