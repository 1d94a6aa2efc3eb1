"""Several processes of one group, as torchrun starts them."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import torch


def one_process(rank: int, number: int, room: Path, work: Any, arguments: tuple[Any, ...]) -> None:
    """Run one rank, in a process of its own."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(room / "store"), number)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=number)
    work(rank, *arguments)
    torch.distributed.destroy_process_group()


def together(number: int, room: Path, work: Any, *arguments: Any) -> None:
    room.mkdir(parents=True, exist_ok=True)
    (room / "store").unlink(missing_ok=True)
    context = multiprocessing.get_context("fork")
    members = [
        context.Process(target=one_process, args=(rank, number, room, work, arguments)) for rank in range(number)
    ]
    for member in members:
        member.start()
    for member in members:
        member.join(600)
        assert member.exitcode == 0
