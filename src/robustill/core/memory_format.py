"""The memory format of networks: channels-last where they compute in it, and the format that they came in elsewhere.

Channels-last is the faster layout of convolutions. A forward such as `h.view(h.size(0), -1)` after a convolution needs
contiguous tensors instead, and fails with "view size is not compatible with input tensor's size and stride".
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from robustill.core.contexts import evaluating, frozen, preserving_buffers
from robustill.core.device import is_out_of_memory
from robustill.core.errors import first_line

_P = ParamSpec("_P")
_T = TypeVar("_T")
# Of torch's lazy layers, which have no shape before the first images.
_LAZY = (nn.UninitializedParameter, nn.UninitializedBuffer)
Function = Callable[[Tensor], Any]
"""Images [B,C,H,W] to logits [B,K]."""

_TRIED = 2
"""Number of images on which a memory format is tried."""


def place(model: nn.Module, device: torch.device, x: Tensor | None = None, *, train: bool = False) -> nn.Module:
    """Move a network to a device, and convert it as `use_channels_last` does.

    Returns:
        The network itself.
    """
    return use_channels_last(model.to(device=device), None if x is None else x.to(device), train=train)


def use_channels_last(model: nn.Module, x: Tensor | None = None, *, train: bool = False) -> nn.Module:
    """Convert a network to channels-last; one that fails in it stays as it is, and is given contiguous images.

    Args:
        model: the network; the members of a ModuleDict are converted one by one.
        x: a few images to try it on, [B,C,H,W]; None converts it without a trial.
        train: try it in train mode too.

    Returns:
        The network itself.
    """
    if isinstance(model, nn.ModuleDict):
        for member in model.values():
            use_channels_last(member, x, train=train)
        return model
    if any(isinstance(each, _LAZY) for each in (*model.parameters(), *model.buffers())):
        return model
    before = _tensors_of(model)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if x is None or x.ndim != 4:
        return model
    failure = _trial(model, _in_channels_last(x), train=train)
    if failure is None:
        return model
    _restore(before)
    if _helps(failure, _trial(model, _in_contiguous_format(x[:_TRIED]), train=train)):
        _make_inputs_contiguous(model)
        return model
    # The format is not the cause: whoever uses the network meets the same error and says what it means.
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def accept_channels_last(model: nn.Module, x: Tensor, *, train: bool = False) -> nn.Module:
    """Let a network take channels-last images, without converting its weights: if it fails on them, it is given
    contiguous ones.

    Args:
        model: the network.
        x: a few images to try it on, [B,C,H,W].
        train: try it in train mode too.

    Returns:
        The network itself.
    """
    if x.ndim != 4:
        return model
    failure = _trial(model, _in_channels_last(x), train=train)
    if failure is not None and _helps(failure, _trial(model, _in_contiguous_format(x[:_TRIED]), train=train)):
        _make_inputs_contiguous(model)
    return model


@contextmanager
def accepting_channels_last(function: Function, x: Tensor) -> Iterator[Function]:
    """Inside the block a network or another function of images takes channels-last images.

    Args:
        function: a network, which is left as it was afterwards, or a function.
        x: a few images to try a network on, [B,C,H,W].

    Yields:
        The network itself; or the function, behind a conversion of the images on which it fails.
    """
    if isinstance(function, nn.Module):
        with keeping_placement(function):
            yield accept_channels_last(function, x)
    else:
        # Without a trial, so that a function that draws random numbers of its own draws the same as ever.
        yield functools.partial(_call_or_convert, function)


@contextmanager
def keeping_placement(*models: nn.Module) -> Iterator[None]:
    """Give networks back on the device and in the memory format in which they came, with the same tensors."""
    before = [_tensors_of(model) for model in models]
    hooks = [(model, set(model._forward_pre_hooks)) for model in models]
    try:
        yield
    finally:
        for tensors in before:
            _restore(tensors)
        for model, keys in hooks:
            for key in set(model._forward_pre_hooks) - keys:
                del model._forward_pre_hooks[key]


def giving_back_networks(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Decorate a function that moves and converts networks: its arguments are given back as by `keeping_placement`.

    Args:
        function: takes networks, or mappings of them, as arguments.
    """

    @functools.wraps(function)
    def decorated(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        networks = []
        for value in (*args, *kwargs.values()):
            members = value.values() if isinstance(value, Mapping) else [value]
            networks += [each for each in members if isinstance(each, nn.Module)]
        with keeping_placement(*networks):
            return function(*args, **kwargs)

    return decorated


def _call_or_convert(function: Function, images: Tensor) -> Any:
    """Call a function; if it fails on images that are not contiguous, call it again on contiguous ones."""
    try:
        return function(images)
    except RuntimeError as error:
        contiguous = _in_contiguous_format(images)
        if contiguous is images or is_out_of_memory(error):
            raise
    return function(contiguous)


def _helps(failure: Exception, other: Exception | None) -> bool:
    """Return whether the error in channels-last is absent, or another one, in the contiguous format."""
    return other is None or first_line(other) != first_line(failure)


def _trial(model: nn.Module, x: Tensor, *, train: bool) -> Exception | None:
    """Return the error of one pass forward and backward over a few images, which leaves no trace."""
    with torch.random.fork_rng([x.device] if x.is_cuda else []), evaluating(model), frozen(model):
        error = _error_of(model, x)
        if error is None and train:
            with preserving_buffers(model):
                # `evaluating` gives every module its own mode back.
                model.train()
                error = _error_of(model, x)
    return error


def _error_of(model: nn.Module, x: Tensor) -> Exception | None:
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_(True)
    try:
        with torch.enable_grad():
            output = model(leaf)
            if isinstance(output, Tensor) and output.requires_grad:
                torch.autograd.grad(output.float().sum(), leaf, allow_unused=True)
    except Exception as error:  # A user's network may raise anything.
        if is_out_of_memory(error):
            raise
        return error
    return None


def _make_inputs_contiguous(model: nn.Module) -> None:
    # Not by the method of the object, which a ScriptModule refuses although its hooks run.
    nn.Module.register_forward_pre_hook(model, _convert_inputs)


def _convert_inputs(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_in_contiguous_format(each) if isinstance(each, Tensor) else each for each in inputs)


def _in_channels_last(x: Tensor) -> Tensor:
    return x[:_TRIED].contiguous(memory_format=torch.channels_last)


def _in_contiguous_format(x: Tensor) -> Tensor:
    """Return images with the strides of the contiguous format.

    Images of one channel or one pixel are contiguous in both formats at once, so `x.contiguous()` would leave them
    channels-last for the convolutions that read them.
    """
    strides = [1]
    for size in reversed(x.shape[1:]):
        strides.insert(0, strides[0] * max(size, 1))
    return x if x.stride() == tuple(strides) else x.clone(memory_format=torch.contiguous_format)


_Tensors = list[tuple[Any, ...]]


def _tensors_of(model: nn.Module) -> _Tensors:
    """Return what `model.to` changes: the data of parameters and of their gradients, and the buffers of modules."""
    found: _Tensors = []
    for parameter in model.parameters():
        if isinstance(parameter, _LAZY):
            continue
        found.append((parameter, parameter.data))
        if parameter.grad is not None:
            found.append((parameter.grad, parameter.grad.data))
    for module in model.modules():
        found += [
            (module, name, buffer)
            for name, buffer in module._buffers.items()
            if buffer is not None and not isinstance(buffer, _LAZY)
        ]
    return found


def _restore(tensors: _Tensors) -> None:
    for owner, *name, data in tensors:
        if name and owner._buffers[name[0]] is not data:
            owner._buffers[name[0]] = data
        elif not name and (owner.data_ptr() != data.data_ptr() or owner.stride() != data.stride()):
            owner.data = data
