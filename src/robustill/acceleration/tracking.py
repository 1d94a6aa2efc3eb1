"""A light copy of a network that is being trained, for the attack of every step."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from robustill.acceleration.cuda_graphs import Replay
from robustill.acceleration.folding import same_function, trace_and_fold, tried_bf16_copy

_FOLDED = (nn.Conv2d, nn.Linear)


class TrackingCopy(nn.Module):
    """The function of a network in eval mode, with BatchNorm folded; `sync` takes over the weights of the moment.

    W' = W·γ/√(σ² + ε), b' = β + (b − μ)·γ/√(σ² + ε) for a layer W, b before a BatchNorm γ, β, μ, σ².

    Args:
        graph: traced, folded, frozen; each of its modules lies where the network has its own.
        folded: layers by name, each with its BatchNorm's.
        cuda_graphs: on a GPU, launch its passes as a whole, see `Replay`.
    """

    def __init__(self, graph: fx.GraphModule, folded: dict[str, str], *, cuda_graphs: bool = False) -> None:
        super().__init__()
        self.graph = graph
        self.folded = folded
        self._replay = Replay(graph) if cuda_graphs else None

    @classmethod
    def of(cls, model: nn.Module, x: Tensor, *, bf16: bool, cuda_graphs: bool = False) -> TrackingCopy | None:
        """A follower of `model`, or None where there is none: see `folding.folded_copy`.

        Args:
            model: in eval mode, its parameters frozen; left as it is.
            x: images to compare on, [B,C,H,W].
            bf16: convolutions and linear layers in bfloat16.
            cuda_graphs: on a GPU, launch its passes as a whole, see `Replay`.
        """
        try:
            light, folded = trace_and_fold(model)
            follower = cls(light, folded)
            # From the network itself once more: what it computes after catching up is what the steps will use.
            follower.sync(model)
            with torch.autocast(x.device.type, enabled=False):
                same = same_function(model, follower, x)
        except Exception:
            # A tracer may fail in any way on a network written for no tracer; the network itself then does the work.
            return None
        if not same:
            return None
        # The very copy that the steps will use; where it fails, the network itself does the work.
        graph = tried_bf16_copy(light, x) if bf16 else light
        return None if graph is None else cls(graph, folded, cuda_graphs=cuda_graphs)

    @property
    def recorded(self) -> bool:
        """Whether its passes are launched as a whole."""
        return self._replay is not None and self._replay.recorded

    def forward(self, x: Tensor) -> Tensor:
        """Images [B,C,H,W] to logits [B,K]."""
        # Where the precision is lower, it is so inside the copy.
        with torch.autocast(x.device.type, enabled=False):
            if self._replay is not None and x.is_cuda:
                return self._replay(x)
            logits: Tensor = self.graph(x)
            return logits

    @torch.no_grad()
    def sync(self, model: nn.Module) -> None:
        """Take over the weights and the running statistics of `model`."""
        if self._replay is not None:
            self._replay.begin()
        for name, mine in self.graph.named_modules():
            own = model.get_submodule(name)
            if name in self.folded:
                _take_folded(mine, own, model.get_submodule(self.folded[name]))
                continue
            for key, value in (*mine.named_parameters(recurse=False), *mine.named_buffers(recurse=False)):
                value.copy_(getattr(own, key))


def _take_folded(mine: nn.Module, layer: nn.Module, norm: nn.Module) -> None:
    assert isinstance(mine, _FOLDED)
    assert isinstance(layer, _FOLDED)
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert mine.bias is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean if layer.bias is None else layer.bias - norm.running_mean
    mine.weight.copy_(layer.weight * scale.view(-1, *(1,) * (layer.weight.ndim - 1)))
    mine.bias.copy_(shift * scale if norm.bias is None else norm.bias + shift * scale)
