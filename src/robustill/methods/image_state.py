"""A row of numbers for every training image, as state of a method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustill.core.distributed import all_gather


class ImageState(nn.Module):
    """A row of K numbers for every training image, by its id (`Batch.index`).

    It is made in a method's `__init__`, read in `inner` and `outer`, and written in `update`. It takes as many rows as
    the largest id needs, is saved with the method, and is the same in every process.

    Example:
        >>> state = ImageState()
        >>> state.set(torch.tensor([1]), torch.tensor([[0.25, 0.75]]))
        >>> state.get(torch.tensor([0, 1]), default=torch.ones(2, 2))
        tensor([[1.0000, 1.0000],
                [0.2500, 0.7500]])
    """

    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        # [N,K], NaN where no row was set.
        self.register_buffer("rows", torch.empty(0, 0))

    def get(self, index: Tensor, default: Tensor) -> Tensor:
        """Return the rows of images.

        Args:
            index: ids, int64 [B].
            default: the rows of images without one, [B,K].

        Returns:
            [B,K].
        """
        if len(self.rows) == 0:
            return default
        rows = self.rows[index.clamp_max(len(self.rows) - 1)]
        is_set = (index < len(self.rows)) & ~rows[:, 0].isnan()
        return torch.where(is_set[:, None], rows, default)

    def set(self, index: Tensor, rows: Tensor) -> None:
        """Set the rows of images, those of all processes.

        Args:
            index: ids, int64 [B].
            rows: without a gradient, [B,K].
        """
        index, rows = all_gather(index), all_gather(rows.float())
        missing = int(index.max()) + 1 - len(self.rows)
        if missing > 0:
            unset = rows.new_full((missing, rows.shape[1]), torch.nan)
            self.rows = torch.cat([self.rows.view(-1, rows.shape[1]), unset])
        self.rows[index] = rows

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.get(prefix + "rows")
        if isinstance(stored, Tensor):
            self.rows = torch.empty_like(stored, device=self.rows.device)
        super()._load_from_state_dict(state_dict, prefix, *args)
