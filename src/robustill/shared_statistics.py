"""BatchNorm over the images of all processes, so that several compute what one would."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from robustill.distributed import summed, summed_with_gradient


class SharedStatistics(TorchFunctionMode):
    """As long as it is entered, BatchNorm in train mode normalises with the mean and the variance of all processes.

    y = γ·(x − μ)/√(σ² + ε) + β with μ and σ² over the images of every process, whose numbers may differ; the running
    statistics move by the same, so that they are equal on all. What is in eval mode, and the networks' modules, stay
    as they are. Every process must take the same layers in the same order.
    """

    entered: ClassVar[int] = 0

    def __enter__(self) -> SharedStatistics:
        """Count, so that what is computed again on the way back, where no such mode is seen, can enter one anew."""
        SharedStatistics.entered += 1
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        """Give back."""
        SharedStatistics.entered -= 1
        super().__exit__(*raised)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Takes F.batch_norm over, and passes on what else there is."""
        if func is F.batch_norm and _argument(args, kwargs or {}, 5, "training"):
            return _batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, False)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    x = input.float()
    others = [0, *range(2, x.ndim)]
    per_channel = (1, -1, *(1,) * (x.ndim - 2))
    count = summed(x.new_full((), float(x.numel() // x.shape[1])))
    mean = summed_with_gradient(x.sum(dim=others)) / count
    centred = x - mean.view(per_channel)
    # Of what is centred already: the mean of squares less the square of the mean would cancel.
    variance = summed_with_gradient(centred.square().sum(dim=others)) / count
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
    scale = (variance + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    found = centred * scale.view(per_channel)
    if bias is not None:
        found = found + bias.view(per_channel)
    return found.to(input.dtype)
