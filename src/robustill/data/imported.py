"""A data set by import path: `my_pkg.my_mod:dataset`, a function of the user that returns it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustill.core.errors import DataError, RobustillError, first_line
from robustill.core.user_code import describe_failure, import_callable
from robustill.core.validation import describe
from robustill.data.encoded import EIGHT_BIT_MODES
from robustill.data.images import Dataset, ImageDataset, Request, check_dataset, check_labels
from robustill.data.npz import CHANNELS, to_bytes

_EXPECTED = "expected uint8, or floats in [0,1]"


def read_imported(request: Request) -> Dataset:
    """Read the data set that a function of the user returns.

    The function takes `split`, "train" or "test", and those of root, image_size and num_classes that it names. It
    returns a `Dataset`, or anything with a length whose items are (image, label), such as a data set of torchvision.
    An image is a tensor [C,H,W] or [H,W], an array, also [H,W,C], or a picture of Pillow, which becomes RGB unless it
    is grey; uint8, or floats in [0,1], which are rounded to the nearest of 256 levels. All of them are kept in memory.
    The names of the classes are its attribute `classes`; without it `num_classes` says how many there are.

    Raises:
        DataError: the function is missing, fails or returns something else.
        UntrustedCodeError: only a file names the import path.
    """
    function = import_callable(request.name, "data set", "function", DataError)
    arguments = _arguments(function, request)
    try:
        content = function(**arguments)
    except RobustillError:
        raise
    except Exception as error:  # A user's function can raise anything.
        raise DataError(f"data set {request.name} ({request.split}) fails: {describe_failure(error)}") from error
    if hasattr(content, "fingerprint") and hasattr(content, "read"):
        return _checked(content, request)
    return _collect(content, request)


def _arguments(function: Callable[..., Any], request: Request) -> dict[str, Any]:
    """Return the arguments that the function names, of those that a data set has."""
    values = {
        "split": request.split,
        "root": request.root,
        "image_size": request.image_size,
        "num_classes": request.num_classes,
    }
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise DataError(f"data set {request.name}: its arguments are unknown ({first_line(error)})") from error
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return values
    names = {each.name for each in parameters}
    if "split" not in names:
        raise DataError(f"data set {request.name} takes no argument `split`, expected dataset(split), train or test")
    return {key: value for key, value in values.items() if key in names}


def _checked(dataset: Any, request: Request) -> Dataset:
    check_dataset(dataset)
    if dataset.split != request.split:
        raise DataError(f"data set {request.name} returned the split {dataset.split!r}, expected {request.split!r}")
    named: Dataset = replace(dataset, name=request.name) if isinstance(dataset, ImageDataset) else dataset
    return named


def _collect(content: Any, request: Request) -> ImageDataset:
    """Return all items of a data set in memory."""
    where = f"data set {request.name} ({request.split})"
    if not (hasattr(content, "__len__") and hasattr(content, "__getitem__")):
        raise DataError(f"{where} is {describe(content)}, expected a length and items (image, label)")
    images, labels = [], []
    for number in range(len(content)):
        try:
            image, label = content[number]
            labels.append(int(label))
            images.append(_to_image(image, f"{where}: image {number}"))
        except RobustillError:
            raise
        except Exception as error:  # A user's own class can raise anything.
            raise DataError(f"{where}: item {number} is no (image, label): {describe_failure(error)}") from error
        if images[-1].shape != images[0].shape:
            shapes = " and ".join(f"{tuple(each.shape)}" for each in (images[0], images[-1]))
            raise DataError(f"{where}: images of shapes {shapes}, expected one shape: resize them in the function")
    if not images:
        raise DataError(f"{where}: no images")
    classes = _classes(content, request)
    collected = torch.tensor(labels, dtype=torch.int64)
    check_labels(collected, len(images), len(classes), where)
    return ImageDataset(
        name=request.name, split=request.split, images=torch.stack(images), labels=collected, classes=classes
    )


def _classes(content: Any, request: Request) -> tuple[str, ...]:
    classes = getattr(content, "classes", None)
    if classes is not None:
        return tuple(str(each) for each in classes)
    if request.num_classes is None:
        raise DataError(
            f"data set {request.name} does not say its classes: give --data.num_classes, or return an object with "
            "their names as the attribute `classes`"
        )
    return tuple(str(label) for label in range(request.num_classes))


def _to_image(image: Any, where: str) -> Tensor:
    """Return an image as uint8 [C,H,W]."""
    is_tensor = isinstance(image, Tensor)
    array = image.detach().cpu().numpy() if is_tensor else np.asarray(_without_palette(image, where))
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and not is_tensor and array.shape[2] in CHANNELS and array.shape[0] not in CHANNELS:
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or array.size == 0:
        raise DataError(f"{where} has the shape {array.shape}, expected [C,H,W] or [H,W]")
    if array.dtype.kind == "f":
        array = to_bytes(array, where)
    if array.dtype != np.uint8:
        raise DataError(f"{where} is {array.dtype}, {_EXPECTED}")
    return torch.from_numpy(np.array(array, order="C"))


def _without_palette(image: Any, where: str) -> Any:
    """Return a picture of Pillow in RGB or grey, as files are decoded; floats and what is no picture unchanged."""
    pillow = sys.modules.get("PIL.Image")
    if pillow is None or not isinstance(image, pillow.Image) or image.mode == "F":
        return image
    if image.mode not in EIGHT_BIT_MODES:
        raise DataError(f"{where} has pixels of mode {image.mode}, expected 8 bits a channel: convert it")
    return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
