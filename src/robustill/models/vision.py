"""torchvision and what stands on it: imported when needed, and even where its compiled operators are missing."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import torch

from robustill.errors import ModelError

# Libraries that declare operators live as long as these objects.
_declared: list[Any] = []


def import_vision(name: str) -> ModuleType:
    """A package of the extra `vision`, such as timm.

    Beside a CPU torch, torchvision's wheel lacks its compiled operators and fails on the first one that it describes,
    torchvision::nms. Declaring the two that it describes at import is enough for networks, which call neither.

    Args:
        name: of the package.

    Raises:
        ModelError: it is not installed, or fails at import.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ModelError(f"{name} cannot be imported ({error}): pip install 'robustill[vision]'") from None
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise ModelError(f"{name} fails at import: {str(error).partition(chr(10))[0]}") from None
    for module in [each for each in sys.modules if each.partition(".")[0] in ("torchvision", name)]:
        del sys.modules[module]
    library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
    return importlib.import_module(name)
