"""A light copy of a network, for attacks: BatchNorm folded into convolutions, channels last, no parameter to train."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from robustill.acceleration.layers import StridedPointwise, add_into, mean_of_pixels, minus, over
from robustill.core.contexts import full_float32

# The copy has to give the network's logits up to this share of the largest, and its gradient up to this share of the
# length: rounding may put single ReLUs on the other side of their kink.
_LOGITS = 1e-4
_GRADIENT = 1e-2
_ADDITIONS = (operator.add, torch.add, add_into)
_OF_CHANNELS = {operator.sub: minus, torch.sub: minus, operator.truediv: over, torch.div: over}
_LAYER_FUNCTIONS = (nn.functional.linear, nn.functional.conv2d)
_POOLING_MODULES = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.Flatten, nn.Dropout, nn.Identity)
_POOLING_FUNCTIONS = (
    torch.mean, torch.flatten, nn.functional.adaptive_avg_pool2d, nn.functional.avg_pool2d, nn.functional.dropout,
    mean_of_pixels,
)  # fmt: skip


def folded_copy(model: nn.Module, x: Tensor) -> fx.GraphModule | None:
    """The same function as a network in eval mode, faster to evaluate and to differentiate; None where there is no way.

    Networks that torch.fx cannot trace have none, nor have those whose copy differs on the images given in logits or in
    the gradient towards the images: random ones, ones with hooks, ones that mask gradients on their way.

    Args:
        model: in eval mode, its parameters frozen; left as it is.
        x: images to compare on, [B,C,H,W].
    """
    try:
        light, _ = trace_and_fold(model)
        same = same_function(model, light, x)
    except Exception:
        # A tracer may fail in any way on a network written for no tracer; the network itself then does the work.
        return None
    return light if same else None


def trace_and_fold(model: nn.Module) -> tuple[fx.GraphModule, dict[str, str]]:
    """A traced copy, BatchNorm folded where it can be; whether it computes the same is still to be seen.

    Args:
        model: in eval mode; left as it is.

    Returns:
        The copy, channels last, without parameters to train; the layers that took a BatchNorm in, each with its name.

    Raises:
        Exception: of any kind, where torch.fx cannot trace the network.
    """
    graph = fx.symbolic_trace(copy.deepcopy(model))
    folded = _fold(graph)
    _fuse_activations(graph)
    _take_cheaper(graph)
    graph.recompile()
    graph.requires_grad_(False)
    return graph.to(memory_format=torch.channels_last), folded  # type: ignore[call-overload]


def bf16_copy(light: fx.GraphModule) -> fx.GraphModule:
    """A light copy whose convolutions and linear layers compute in bfloat16; for gradients, never for decisions.

    The last linear layer, and the pooling before it, stay in float32: logits rounded to bfloat16 hide from an attack
    whether a step raised its loss.
    """
    rough = copy.deepcopy(light)
    last = _classifier(rough)
    for node in list(rough.graph.nodes):
        module = _module(rough, node)
        if node is not last and isinstance(module, nn.Conv2d | nn.Linear):
            slow = _slow_in_bfloat16(module)
            if not slow:
                module.to(torch.bfloat16)
            _cast(rough, node, torch.float32 if slow else torch.bfloat16)
        elif node.op == "call_function" and node.target in _LAYER_FUNCTIONS and _reads_weight(node):
            # A layer of one's own, whose weight stays in float32.
            _cast(rough, node, torch.float32)
    if last is not None:
        while isinstance(last.args[0], fx.Node) and _is_pooling(rough, last.args[0]):
            last = last.args[0]
        _cast(rough, last, torch.float32)
    rough.recompile()
    return rough


def tried_bf16_copy(light: fx.GraphModule, x: Tensor) -> fx.GraphModule | None:
    """Return the `bf16_copy` of a light copy; None where it fails on the images, as layers of one's own may in it.

    Args:
        light: a light copy.
        x: images to try it on, forward and backward, [B,C,H,W].
    """
    try:
        rough = bf16_copy(light)
        # Without the mode that a step may have entered, whose products this pass is none of.
        with torch.autocast(x.device.type, enabled=False), torch._C.DisableTorchFunction():
            # Not by its call, which prints a traceback where it fails.
            results = _logits_and_gradient(rough.forward, x[:8].contiguous(memory_format=torch.channels_last))
    except Exception:
        # Of any kind: in float32 the same network has just worked.
        return None
    return rough if all(bool(torch.isfinite(each).all()) for each in results) else None


def _classifier(graph: fx.GraphModule) -> fx.Node | None:
    """The linear layer that gives the logits; None where something else does."""
    (output,) = next(node for node in graph.graph.nodes if node.op == "output").all_input_nodes
    return output if isinstance(_module(graph, output), nn.Linear) and _calls(graph, output.target) == 1 else None


def _is_pooling(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node averages or reshapes, and reads one tensor."""
    if len(node.all_input_nodes) != 1 or not isinstance(node.args[0], fx.Node):
        return False
    return (
        isinstance(_module(graph, node), _POOLING_MODULES)
        or (node.op == "call_method" and node.target in ("mean", "flatten", "view", "reshape", "squeeze", "permute"))
        or (node.op == "call_function" and node.target in _POOLING_FUNCTIONS)
    )


def _cast(graph: fx.GraphModule, node: fx.Node, dtype: torch.dtype) -> None:
    with graph.graph.inserting_before(node):
        node.args = (graph.graph.call_method("to", (node.args[0], dtype)), *node.args[1:])


def _reads_weight(node: fx.Node) -> bool:
    """Whether the second operand of a node is a tensor of the network itself."""
    return len(node.args) > 1 and isinstance(node.args[1], fx.Node) and node.args[1].op == "get_attr"


def _slow_in_bfloat16(layer: nn.Conv2d | nn.Linear) -> bool:
    """Strided depthwise convolutions: their bfloat16 backward pass on a CPU takes twenty times the float32 one."""
    return isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.stride != (1, 1) and not layer.weight.is_cuda


def _fold(graph: fx.GraphModule) -> dict[str, str]:
    """Fold each BatchNorm that is the only reader of a layer into it: the layers by name, each with its BatchNorm's."""
    folded: dict[str, str] = {}
    for node in list(graph.graph.nodes):
        norm, source = _module(graph, node), node.args[0] if node.args else None
        if not (isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) and norm.track_running_stats):
            continue
        if not (isinstance(source, fx.Node) and len(source.users) == 1):
            continue
        layer = _module(graph, source)
        if isinstance(layer, nn.Conv2d):
            fused: nn.Module = fuse_conv_bn_eval(layer, norm)
        elif isinstance(layer, nn.Linear):
            fused = fuse_linear_bn_eval(layer, norm)
        else:
            continue
        if _calls(graph, source.target) > 1:
            continue
        graph.set_submodule(str(source.target), fused)
        folded[str(source.target)] = str(node.target)
        node.replace_all_uses_with(source)
        graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    return folded


def _fuse_activations(graph: fx.GraphModule) -> None:
    """ReLUs that are the only reader of a convolution or a sum overwrite it."""
    for node in graph.graph.nodes:
        if not _is_relu(graph, node):
            continue
        (source,) = node.args[:1]
        fresh = isinstance(_module(graph, source), nn.Conv2d | nn.Linear | nn.BatchNorm2d) or (
            source.op == "call_function" and source.target in _ADDITIONS
        )
        if fresh and len(source.users) == 1:
            node.op, node.target, node.args, node.kwargs = "call_function", torch.relu_, (source,), {}


def _take_cheaper(graph: fx.GraphModule) -> None:
    """Layers give way to those of `cheaper` that compute the same."""
    for node in graph.graph.nodes:
        module = _module(graph, node)
        if node.op == "call_method" and node.target == "mean" and _over_pixels(node):
            node.op, node.target, node.args, node.kwargs = "call_function", mean_of_pixels, node.args[:1], {}
        elif node.op == "call_method" and node.target == "view":
            # The same numbers, of channels-last feature maps too.
            node.target = "reshape"
        elif node.op == "call_function" and node.target in _ADDITIONS and _adds_to_convolution(graph, node):
            node.target = add_into
        elif node.op == "call_function" and node.target in _OF_CHANNELS and _with_channels(graph, node):
            node.target = _OF_CHANNELS[node.target]
        elif isinstance(module, nn.Conv2d) and (sparse := StridedPointwise.of(module)) is not None:
            graph.set_submodule(str(node.target), sparse)


def _adds_to_convolution(graph: fx.GraphModule, node: fx.Node) -> bool:
    # The backward pass of a convolution does without its output, so the sum may take its place.
    first = node.args[0] if len(node.args) == 2 and not node.kwargs else None
    two = all(isinstance(each, fx.Node) for each in node.args)
    return two and isinstance(first, fx.Node) and len(first.users) == 1 and isinstance(_module(graph, first), nn.Conv2d)


def _with_channels(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node's second operand is a tensor of one value a channel, on a CPU."""
    second = node.args[1] if len(node.args) == 2 and not node.kwargs else None
    if not (isinstance(node.args[0], fx.Node) and isinstance(second, fx.Node) and second.op == "get_attr"):
        return False
    values = operator.attrgetter(str(second.target))(graph)
    of_channels = values.ndim == 4 and values[0].numel() == values.numel() == values.shape[1]
    return bool(of_channels and values.device.type == "cpu")


def _over_pixels(node: fx.Node) -> bool:
    # (2, 3) of a tensor of five dimensions would fail in `mean_of_pixels`, and the network would have no copy.
    options = {"dim": node.args[1] if len(node.args) == 2 else None, **node.kwargs}
    return options.keys() <= {"dim"} and options["dim"] in ((2, 3), [2, 3])


def _is_relu(graph: fx.GraphModule, node: fx.Node) -> bool:
    if isinstance(_module(graph, node), nn.ReLU):
        return True
    return (node.op == "call_function" and node.target in (nn.functional.relu, torch.relu)) or (
        node.op == "call_method" and node.target == "relu"
    )


def same_function(model: nn.Module, light: nn.Module, x: Tensor) -> bool:
    """Whether both give the same logits, and the same gradient towards the images, on the first few of them.

    Args:
        model: in eval mode.
        light: what claims to compute the same.
        x: images, [B,C,H,W].
    """
    images = x[:8]
    with full_float32():
        logits, grad = _logits_and_gradient(model, images)
        light_logits, light_grad = _logits_and_gradient(light, images.contiguous(memory_format=torch.channels_last))
    return bool(
        (logits - light_logits).abs().max() <= _LOGITS * logits.abs().max()
        and (grad - light_grad).norm() <= _GRADIENT * grad.norm()
    )


def _logits_and_gradient(model: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_(True)
    with torch.enable_grad():
        logits = model(leaf)
        # Weights that differ, so that the sum does not cancel as the sum of all classes' gradients may.
        weights = torch.linspace(-1, 2, logits.shape[1], device=x.device)
        (grad,) = torch.autograd.grad((logits * weights).sum(), leaf)
    return logits.detach(), grad


def _module(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def _calls(graph: fx.GraphModule, target: object) -> int:
    return sum(node.op == "call_module" and node.target == target for node in graph.graph.nodes)
