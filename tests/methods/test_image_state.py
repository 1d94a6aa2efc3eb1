"""The rows of every training image: unset ones, growth, saving, and several processes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from helpers.processes import together
from robustill.methods import ImageState


def test_rows_are_those_last_set_and_the_default_elsewhere() -> None:
    state, default = ImageState(), torch.arange(8.0).view(4, 2)
    assert torch.equal(state.get(torch.tensor([0, 5, 2, 9]), default), default)
    state.set(torch.tensor([5, 2]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    state.set(torch.tensor([7, 5]), torch.tensor([[5.0, 6.0], [7.0, 8.0]]))
    found = state.get(torch.tensor([0, 5, 2, 9]), default)
    assert found.tolist() == [[0.0, 1.0], [7.0, 8.0], [3.0, 4.0], [6.0, 7.0]]
    assert state.rows.shape == (8, 2)


def test_a_saved_state_replaces_one_of_another_size() -> None:
    holder, other = nn.ModuleDict({"state": ImageState()}), nn.ModuleDict({"state": ImageState()})
    holder["state"].set(torch.tensor([1]), torch.tensor([[1.0, 2.0]]))
    for later in (3, 9):
        other["state"].set(torch.tensor([later]), torch.tensor([[9.0, 9.0]]))
        other.load_state_dict(holder.state_dict())
        assert torch.equal(other["state"].rows.nan_to_num(), holder["state"].rows.nan_to_num())


def setting(rank: int, folder: Path) -> None:
    state = ImageState()
    own = [torch.tensor([4, 0, 2]), torch.tensor([1, 6])][rank]
    state.set(own, torch.stack([own, 10 * own], dim=1))
    torch.save(state.rows, folder / f"{rank}.pt")


def test_every_process_has_the_rows_of_all(tmp_path: Path) -> None:
    together(2, tmp_path / "room", setting, tmp_path)
    expected = torch.full((7, 2), torch.nan)
    for image in (0, 1, 2, 4, 6):
        expected[image] = torch.tensor([image, 10 * image])
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected, equal_nan=True)
