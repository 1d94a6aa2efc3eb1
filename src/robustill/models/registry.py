"""The table of networks, MODELS, and `build`, which makes one of them by name.

A new network is a row in MODELS, or an import path `my_pkg.my_mod:function`; it may also name a network itself.
Networks of timm and torchvision are built by `robustill.models.vision`.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robustill.core.contexts import copy_network
from robustill.core.errors import ModelError, RobustillError, did_you_mean, first_line
from robustill.core.randomness import derive_seed
from robustill.core.user_code import describe_failure, import_callable
from robustill.core.validation import check_choice, check_integer, check_number, check_seed, check_type, describe
from robustill.models.architectures.deepmind import preactresnet18_silu, wideresnet_silu
from robustill.models.architectures.lenet import lenet
from robustill.models.architectures.mobilenetv2 import mobilenetv2
from robustill.models.architectures.preactresnet import preactresnet18
from robustill.models.architectures.resnet import resnet8, resnet18, resnet34
from robustill.models.architectures.resnet_kb import resnet_2b, resnet_2b2
from robustill.models.architectures.small_cnn import cnn_a, cnn_deep, madry_cnn_tiny, trades_smallcnn
from robustill.models.architectures.wideresnet import wideresnet
from robustill.models.fake_quantisation import fake_quantise, is_fake_quantised
from robustill.models.layers import ImageSize, Normalize
from robustill.models.vision import build_published, is_published

_COMMON_ARGUMENTS = ("num_classes", "in_channels", "image_size")


@dataclass(frozen=True)
class ModelEntry:
    """One row of MODELS.

    Args:
        constructor: called with num_classes, in_channels, image_size and its own options, all by keyword.
    """

    constructor: Callable[..., nn.Module]

    @property
    def description(self) -> str:
        """One line for `--help` and error messages."""
        return (inspect.getdoc(self.constructor) or "").partition("\n")[0]

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's own options with their defaults."""
        parameters = inspect.signature(self.constructor).parameters.values()
        return {each.name: each.default for each in parameters if each.name not in _COMMON_ARGUMENTS}


MODELS: dict[str, ModelEntry] = {
    "resnet18": ModelEntry(resnet18),
    "resnet34": ModelEntry(resnet34),
    "preactresnet18": ModelEntry(preactresnet18),
    "preactresnet18_silu": ModelEntry(preactresnet18_silu),
    "wideresnet": ModelEntry(wideresnet),
    "wideresnet_silu": ModelEntry(wideresnet_silu),
    "mobilenetv2": ModelEntry(mobilenetv2),
    "resnet8": ModelEntry(resnet8),
    "lenet": ModelEntry(lenet),
    "cnn_a": ModelEntry(cnn_a),
    "cnn_deep": ModelEntry(cnn_deep),
    "trades_smallcnn": ModelEntry(trades_smallcnn),
    "madry_cnn_tiny": ModelEntry(madry_cnn_tiny),
    "resnet_2b": ModelEntry(resnet_2b),
    "resnet_2b2": ModelEntry(resnet_2b2),
}


def build(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: ImageSize = 32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int | None = None,
    quantize: str | None = None,
    **options: Any,
) -> nn.Module:
    """Build a network with fresh weights and its normalisation inside.

    Args:
        name: a key of MODELS, or an import path `my_pkg.my_mod:function`; the function is called with the options and
            with those of num_classes, in_channels and image_size that it takes, and returns a Module. Where the path
            names a Module instead, a copy of it is taken, with its weights and its own mean and std. Or
            "timm:resnet18", "torchvision:resnet18", see `robustill.models.vision.build_published`.
        num_classes: K, at least 2.
        in_channels: C of the images.
        image_size: height and width in pixels; networks with global pooling accept any other size as well.
        mean: one value per channel, in units of [0,1]; None means 0, or that of a network of timm or torchvision.
        std: one positive value per channel, in units of [0,1]; None means 1, or that of such a network.
        seed: the initial weights are a function of it alone, and the global generator is left unchanged;
            None draws them from the global generator.
        quantize: "int8" rounds weights and activations as an int8 file does, see `robustill.models.fake_quantisation`.
        options: the options of the network's own constructor, e.g. `width=16`.

    Returns:
        The module, in train mode, on the CPU.

    Raises:
        ModelError: an unknown name or option, or an invalid value.

    Example:
        >>> import robustill as rb
        >>> rb.build_model("resnet8", num_classes=10, seed=0)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    check_type("name", name, str, "the name of a network, such as 'resnet18', or my_pkg.my_mod:function", ModelError)
    constructor = _constructor(name, options)
    check_integer("num_classes", num_classes, at_least=2, error=ModelError)
    check_integer("in_channels", in_channels, at_least=1, error=ModelError)
    _check_image_size(image_size)
    if seed is not None:
        check_seed(seed, ModelError)
    arguments = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    if ":" in name and not is_published(name):
        arguments = _accepted_arguments(constructor, arguments)
    if seed is None:
        model = _construct(constructor, name, arguments, options)
    else:
        # Only the CPU's generator is seeded: parameters are drawn there, and a GPU's generator is left unchanged.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(seed, "parameters"))
            model = _construct(constructor, name, arguments, options)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name} returned {type(model).__name__}; expected a torch.nn.Module")
    if name in MODELS and any(parameter.numel() == 0 for parameter in model.parameters()):
        raise ModelError(f"model {name} with {options} has layers without a single weight: give larger options")
    if mean is not None or std is not None:
        _set_normalisation(model, name, mean, std, in_channels)
    if quantize is not None:
        check_choice("quantize", quantize, ("int8",), ModelError)
        fake_quantise(model)
        if not is_fake_quantised(model):
            raise ModelError(f"model {name} has no convolution or linear layer of torch to round: leave quantize out")
    return model


def _construct(
    constructor: Callable[..., nn.Module], name: str, arguments: dict[str, Any], options: dict[str, Any]
) -> nn.Module:
    """Call a constructor; an error that it raises, as for an option of the wrong type, becomes a ModelError."""
    try:
        with warnings.catch_warnings():
            # Layers without weights are an error in `build`.
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
            return constructor(**arguments, **options)
    except RobustillError:
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise ModelError(f"model {name} cannot be built with {options}: {first_line(error)}") from error
    except Exception as error:
        if name in MODELS:
            raise
        # A user's function can raise anything.
        raise ModelError(f"model {name} cannot be built with {options}: {describe_failure(error)}") from error


def _check_image_size(image_size: Any) -> None:
    sizes = image_size if isinstance(image_size, Sequence) and not isinstance(image_size, str) else [image_size]
    for size in sizes:
        check_integer("image_size", size, at_least=1, error=ModelError)
    if sizes is image_size and len(sizes) != 2:
        raise ModelError(f"image_size has {len(sizes)} numbers, expected one, or (height, width)")


def _constructor(name: str, options: dict[str, Any]) -> Callable[..., nn.Module]:
    """Return the constructor of a network, after checking the options of one in MODELS."""
    if is_published(name):
        return partial(build_published, name)
    if ":" in name:
        return _import_constructor(name)
    if name not in MODELS:
        raise ModelError(
            f"unknown model {name!r}; {did_you_mean(name, MODELS)} (an import path is written my_pkg.my_mod:function)"
        )
    valid = MODELS[name].options
    for option in options:
        if option not in valid:
            hint = did_you_mean(option, valid) if valid else "it takes none"
            names = f" (its options: {', '.join(sorted(valid))})" if hint.startswith("did") else ""
            raise ModelError(f"model {name} has no option {option!r}; {hint}{names}")
    return MODELS[name].constructor


def _import_constructor(path: str) -> Callable[..., nn.Module]:
    """Import the function that `my_pkg.my_mod:function` names; of a network, a function that copies it."""
    function = import_callable(path, "model", "function", ModelError)
    if isinstance(function, nn.Module):
        network = function

        def own_copy() -> nn.Module:
            # Training must not change the module's own network, which others use too.
            return copy_network(network)

        return own_copy
    return function


def _accepted_arguments(function: Callable[..., nn.Module], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that a function accepts: a user's function may fix its number of classes itself."""
    parameters = inspect.signature(function).parameters.values()
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return arguments
    names = {each.name for each in parameters}
    return {key: value for key, value in arguments.items() if key in names}


def _set_normalisation(
    model: nn.Module, name: str, mean: Sequence[float] | None, std: Sequence[float] | None, in_channels: int
) -> None:
    """Replace `model.normalize` by one with the given mean and standard deviation, after checking both."""
    layer = getattr(model, "normalize", None)
    if not isinstance(layer, Normalize):
        raise ModelError(
            f"model {name} has no attribute `normalize` of type robustill.models.Normalize; add it as the first layer, "
            "or leave mean and std out"
        )
    own = layer if is_published(name) else Normalize.identity(in_channels)
    mean = own.mean.flatten().tolist() if mean is None else _channel_values("mean", mean)
    std = own.std.flatten().tolist() if std is None else _channel_values("std", std)
    for label, values in (("mean", mean), ("std", std)):
        if len(values) != in_channels:
            raise ModelError(f"{label} has {len(values)} values; expected one per channel, {in_channels}")
    if not all(value > 0 for value in std):
        raise ModelError(f"std is {std}; expected positive values, in units of [0,1]")
    model.normalize = Normalize(mean, std)


def _channel_values(name: str, values: Any) -> list[float]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ModelError(f"{name} is {describe(values)}, expected a list of one number per channel")
    numbers = values.tolist() if isinstance(values, Tensor) else list(values)
    return [
        check_number(f"{name} of channel {channel}", value, error=ModelError) for channel, value in enumerate(numbers)
    ]
