"""Is this a network that can be attacked and taught from?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustill.errors import ModelError
from robustill.modes import evaluating


def check_network(model: nn.Module, x: Tensor, num_classes: int, what: str) -> None:
    """One pass over a few images, before hours are spent.

    Args:
        model: the network.
        x: images in [0,1], [B,C,H,W].
        num_classes: K that is expected.
        what: how an error names the network, e.g. "teacher run:runs/t1@best".

    Raises:
        ModelError: it fails on such images, gives something else than logits [B,K], or gives NaN.
    """
    try:
        with evaluating(model), torch.no_grad():
            logits = model(x)
    except Exception as error:  # Somebody's own network: whatever it raises, it fails on such images.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{what} fails on images of shape {list(x.shape)}: {reason}") from error
    if not isinstance(logits, Tensor):
        raise ModelError(f"{what} returns a {type(logits).__name__}, expected a tensor of logits [B,{num_classes}]")
    if logits.shape != (len(x), num_classes):
        raise ModelError(f"{what} returns shape {list(logits.shape)}, expected [{len(x)}, {num_classes}]")
    if not torch.isfinite(logits).all():
        raise ModelError(f"{what} returns NaN or infinite logits on clean images: its weights are damaged")
