"""Trace a network into a copy for attacks: BatchNorm folded into convolutions, channels last, no parameter gradients.

AutoAttack in exact mode, which searches on such a copy, takes 1/2.3 of the processor time of the authors' code, and in
fast mode, with gradients from its bfloat16 copy, 1/3.1 (ResNet-8 of width 16, l∞ 8/255, 48 images, one thread:
benchmarks/LOG.md, "AutoAttack against the authors' code"). Every success is confirmed by the network itself. A network
that cannot be traced has no copy, and is attacked itself.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from robustill.acceleration.layers import (
    StridedConv1x1,
    add_in_place,
    divide_channels,
    global_average_pool,
    subtract_channels,
)
from robustill.core.contexts import full_float32

# The copy's logits may differ from the network's by this share of the largest, and its gradient by this share of the
# norm: rounding may put single ReLUs on the other side of zero.
_LOGIT_TOLERANCE = 1e-4
_GRADIENT_TOLERANCE = 1e-2
_ADDITIONS = (operator.add, torch.add, add_in_place)
_PER_CHANNEL = {
    operator.sub: subtract_channels,
    torch.sub: subtract_channels,
    operator.truediv: divide_channels,
    torch.div: divide_channels,
}
_BATCH_NORM_ARGUMENTS = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
# Of checks that a layer makes of its input: what they read, and the check itself.
_CHECKS = (torch._assert, operator.eq, getattr)
_LAYER_FUNCTIONS = (nn.functional.linear, nn.functional.conv2d)
_POOLING_MODULES = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.Flatten, nn.Dropout, nn.Identity)
_POOLING_FUNCTIONS = (
    torch.mean, torch.flatten, nn.functional.adaptive_avg_pool2d, nn.functional.avg_pool2d, nn.functional.dropout,
    global_average_pool,
)  # fmt: skip


def folded_copy(model: nn.Module, x: Tensor) -> fx.GraphModule | None:
    """Return a copy of a network in eval mode that is faster to evaluate and to differentiate, or None.

    There is none for networks that torch.fx cannot trace, and for those whose copy has other logits or another gradient
    towards the images on the images given, such as networks with random layers, hooks or masked gradients.

    Args:
        model: in eval mode, its parameters frozen; not changed.
        x: images on which both are compared, [B,C,H,W].
    """
    try:
        folded, _ = trace_and_fold(model)
        equivalent = is_equivalent(model, folded, x)
    except Exception:
        # torch.fx may raise anything on a network it cannot trace; the network itself is then attacked.
        return None
    return folded if equivalent else None


def trace_and_fold(model: nn.Module) -> tuple[fx.GraphModule, dict[str, str]]:
    """Return a traced copy with BatchNorm folded where possible, not yet compared with the network.

    Args:
        model: in eval mode; not changed.

    Returns:
        The copy, channels last, its parameters frozen; the names of the layers that absorbed a BatchNorm, each with the
        name of that BatchNorm.

    Raises:
        Exception: of any kind, where torch.fx cannot trace the network.
    """
    graph = fx.symbolic_trace(copy.deepcopy(model))
    _restore_batchnorms(graph)
    folded = _fold(graph)
    _fuse_activations(graph)
    _replace_layers(graph)
    graph.recompile()
    graph.requires_grad_(False)
    return graph.to(memory_format=torch.channels_last), folded  # type: ignore[call-overload]


def bf16_copy(folded: fx.GraphModule) -> fx.GraphModule:
    """Return a folded copy whose convolutions and linear layers compute in bfloat16; for gradients, not for decisions.

    The last linear layer, and the pooling before it, stay in float32: with logits rounded to bfloat16 an attack could
    not see whether a step raised its loss.
    """
    copied = copy.deepcopy(folded)
    last = _classifier(copied)
    for node in list(copied.graph.nodes):
        module = _submodule(copied, node)
        if node is not last and isinstance(module, nn.Conv2d | nn.Linear):
            slow = _is_slow_in_bfloat16(module)
            if not slow:
                module.to(torch.bfloat16)
            _cast_input(copied, node, torch.float32 if slow else torch.bfloat16)
        elif node.op == "call_function" and node.target in _LAYER_FUNCTIONS and _reads_weight(node):
            # The weight of a user's own layer stays in float32.
            _cast_input(copied, node, torch.float32)
    if last is not None:
        while isinstance(last.args[0], fx.Node) and _is_pooling(copied, last.args[0]):
            last = last.args[0]
        _cast_input(copied, last, torch.float32)
    copied.recompile()
    return copied


def try_bf16_copy(folded: fx.GraphModule, x: Tensor) -> fx.GraphModule | None:
    """Return the `bf16_copy` of a folded copy, or None if it fails on the images, as a user's own layers may.

    Args:
        folded: a folded copy.
        x: images to try it on, forward and backward, [B,C,H,W].
    """
    try:
        copied = bf16_copy(folded)
        # Outside the mode that a step may have entered: this pass is not one of the step.
        with torch.autocast(x.device.type, enabled=False), torch._C.DisableTorchFunction():
            # By `forward`, because calling a traced module prints a traceback if it fails.
            results = _logits_and_gradient(copied.forward, x[:8].contiguous(memory_format=torch.channels_last))
    except Exception:
        # Any kind of error: the same network has just worked in float32.
        return None
    return copied if all(bool(torch.isfinite(each).all()) for each in results) else None


def _classifier(graph: fx.GraphModule) -> fx.Node | None:
    """Return the linear layer that computes the logits, or None if another node does."""
    (output,) = next(node for node in graph.graph.nodes if node.op == "output").all_input_nodes
    return (
        output if isinstance(_submodule(graph, output), nn.Linear) and _count_calls(graph, output.target) == 1 else None
    )


def _is_pooling(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether a node averages or reshapes a single tensor."""
    if len(node.all_input_nodes) != 1 or not isinstance(node.args[0], fx.Node):
        return False
    return (
        isinstance(_submodule(graph, node), _POOLING_MODULES)
        or (node.op == "call_method" and node.target in ("mean", "flatten", "view", "reshape", "squeeze", "permute"))
        or (node.op == "call_function" and node.target in _POOLING_FUNCTIONS)
    )


def _cast_input(graph: fx.GraphModule, node: fx.Node, dtype: torch.dtype) -> None:
    with graph.graph.inserting_before(node):
        node.args = (graph.graph.call_method("to", (node.args[0], dtype)), *node.args[1:])


def _reads_weight(node: fx.Node) -> bool:
    """Return whether the second operand of a node is a tensor of the network itself."""
    return len(node.args) > 1 and isinstance(node.args[1], fx.Node) and node.args[1].op == "get_attr"


def _is_slow_in_bfloat16(layer: nn.Conv2d | nn.Linear) -> bool:
    # The bfloat16 backward pass of a strided depthwise convolution on a CPU takes twenty times the float32 one.
    return isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.stride != (1, 1) and not layer.weight.is_cuda


def _restore_batchnorms(graph: fx.GraphModule) -> None:
    """Call a BatchNorm that the trace has gone into as a module again, as timm's with an activation are.

    Checks of the input are removed: they would be further readers of the layer before.
    """
    for node in reversed(list(graph.graph.nodes)):
        if node.op == "call_function" and node.target in _CHECKS and not node.users:
            graph.graph.erase_node(node)
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target is not nn.functional.batch_norm:
            continue
        given = {**dict(zip(_BATCH_NORM_ARGUMENTS, node.args[1:], strict=False)), **node.kwargs}
        name = _module_of({key: given.get(key) for key in ("running_mean", "running_var", "weight", "bias")})
        if name is None or given.get("training") is not False or "eps" not in given:
            continue
        old = graph.get_submodule(name)
        norm = nn.BatchNorm2d(len(old.running_mean), eps=given["eps"]).to(old.weight.device).eval()  # type: ignore[arg-type]
        tensors = {**dict(old.named_parameters(recurse=False)), **dict(old.named_buffers(recurse=False))}
        norm.load_state_dict(tensors, strict=False)
        for child_name, child in old.named_children():
            norm.add_module(child_name, child)
        graph.set_submodule(name, norm)
        node.op, node.target, node.args, node.kwargs = "call_module", name, node.args[:1], {}
    graph.graph.lint()


def _module_of(tensors: dict[str, object]) -> str | None:
    """Return the name of the module whose attributes of these names the nodes read; None if there is no such module."""
    names = set()
    for key, node in tensors.items():
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return None
        module, _, attribute = str(node.target).rpartition(".")
        names.add(module if attribute == key else "")
    (name,) = names if len(names) == 1 else ("",)
    return name or None


def _fold(graph: fx.GraphModule) -> dict[str, str]:
    """Fold each BatchNorm into the layer before it, unless others read that layer; return the names of both."""
    folded: dict[str, str] = {}
    for node in list(graph.graph.nodes):
        norm, source = _submodule(graph, node), node.args[0] if node.args else None
        if not (isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) and norm.track_running_stats):
            continue
        if not (isinstance(source, fx.Node) and len(source.users) == 1):
            continue
        layer = _submodule(graph, source)
        if isinstance(layer, nn.Conv2d):
            fused: nn.Module = fuse_conv_bn_eval(layer, norm)
        elif isinstance(layer, nn.Linear):
            fused = fuse_linear_bn_eval(layer, norm)
        else:
            continue
        if _count_calls(graph, source.target) > 1:
            continue
        graph.set_submodule(str(source.target), fused)
        folded[str(source.target)] = str(node.target)
        node.replace_all_uses_with(source)
        graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    return folded


def _fuse_activations(graph: fx.GraphModule) -> None:
    """Let ReLUs overwrite a convolution or a sum that nothing else reads."""
    for node in graph.graph.nodes:
        if not _is_relu(graph, node):
            continue
        (source,) = node.args[:1]
        fresh = isinstance(_submodule(graph, source), nn.Conv2d | nn.Linear | nn.BatchNorm2d) or (
            source.op == "call_function" and source.target in _ADDITIONS
        )
        if fresh and len(source.users) == 1:
            node.op, node.target, node.args, node.kwargs = "call_function", torch.relu_, (source,), {}


def _replace_layers(graph: fx.GraphModule) -> None:
    """Replace layers by those of `layers` that compute the same."""
    for node in graph.graph.nodes:
        module = _submodule(graph, node)
        if node.op == "call_method" and node.target == "mean" and _is_mean_over_pixels(node):
            node.op, node.target, node.args, node.kwargs = "call_function", global_average_pool, node.args[:1], {}
        elif node.op == "call_method" and node.target == "view":
            # The same numbers, also for channels-last feature maps.
            node.target = "reshape"
        elif node.op == "call_function" and node.target in _ADDITIONS and _adds_to_convolution(graph, node):
            node.target = add_in_place
        elif node.op == "call_function" and node.target in _PER_CHANNEL and _has_channel_values(graph, node):
            node.target = _PER_CHANNEL[node.target]
        elif isinstance(module, nn.Conv2d):
            strided = StridedConv1x1.from_conv(module)
            if strided is not None:
                graph.set_submodule(str(node.target), strided)


def _adds_to_convolution(graph: fx.GraphModule, node: fx.Node) -> bool:
    # The backward pass of a convolution does not need its output, so the sum may overwrite it.
    first = node.args[0] if len(node.args) == 2 and not node.kwargs else None
    all_nodes = all(isinstance(each, fx.Node) for each in node.args)
    return (
        all_nodes
        and isinstance(first, fx.Node)
        and len(first.users) == 1
        and isinstance(_submodule(graph, first), nn.Conv2d)
    )


def _has_channel_values(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether a node's second operand is a tensor of one value a channel, on a CPU."""
    second = node.args[1] if len(node.args) == 2 and not node.kwargs else None
    if not (isinstance(node.args[0], fx.Node) and isinstance(second, fx.Node) and second.op == "get_attr"):
        return False
    values = operator.attrgetter(str(second.target))(graph)
    per_channel = values.ndim == 4 and values[0].numel() == values.numel() == values.shape[1]
    return bool(per_channel and values.device.type == "cpu")


def _is_mean_over_pixels(node: fx.Node) -> bool:
    # A mean over (2, 3) of five dimensions fails in `global_average_pool`; the network then has no copy.
    options = {"dim": node.args[1] if len(node.args) == 2 else None, **node.kwargs}
    return options.keys() <= {"dim"} and options["dim"] in ((2, 3), [2, 3])


def _is_relu(graph: fx.GraphModule, node: fx.Node) -> bool:
    if isinstance(_submodule(graph, node), nn.ReLU):
        return True
    return (node.op == "call_function" and node.target in (nn.functional.relu, torch.relu)) or (
        node.op == "call_method" and node.target == "relu"
    )


def is_equivalent(model: nn.Module, other: nn.Module, x: Tensor) -> bool:
    """Return whether two networks have the same logits and gradients towards the images, on the first few images.

    Args:
        model: in eval mode.
        other: compared with it.
        x: images, [B,C,H,W].
    """
    images = x[:8]
    with full_float32():
        logits, grad = _logits_and_gradient(model, images)
        other_logits, other_grad = _logits_and_gradient(other, images.contiguous(memory_format=torch.channels_last))
    return bool(
        (logits - other_logits).abs().max() <= _LOGIT_TOLERANCE * logits.abs().max()
        and (grad - other_grad).norm() <= _GRADIENT_TOLERANCE * grad.norm()
    )


def _logits_and_gradient(model: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_(True)
    with torch.enable_grad():
        logits = model(leaf)
        # The weights differ, because the gradients of all classes may cancel in a plain sum.
        weights = torch.linspace(-1, 2, logits.shape[1], device=x.device)
        (grad,) = torch.autograd.grad((logits * weights).sum(), leaf)
    return logits.detach(), grad


def _submodule(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def _count_calls(graph: fx.GraphModule, target: object) -> int:
    return sum(node.op == "call_module" and node.target == target for node in graph.graph.nodes)
