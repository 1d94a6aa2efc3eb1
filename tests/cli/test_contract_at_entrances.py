"""Every command that takes a network tries it first, and refuses one that breaks the contract in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from helpers.command_line import Call
from helpers.small_runs import tree


class Network(nn.Module):
    """A linear layer with a function before and one after it."""

    def __init__(self, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.layer(self.before(x).flatten(1)))


def returns_a_tuple() -> nn.Module:
    return Network(lambda x: x, lambda z: (z, z))


def returns_numpy() -> nn.Module:
    return Network(lambda x: x, lambda z: z.detach().numpy())


def squeezes() -> nn.Module:
    return Network(lambda x: x, lambda z: z.squeeze())


def changes_its_input() -> nn.Module:
    return Network(lambda x: x.sub_(0.5), lambda z: z)


def detaches() -> nn.Module:
    return Network(lambda x: x, lambda z: z.detach())


MESSAGES = {
    "returns_a_tuple": "returns a tuple, expected a tensor of logits [B,10]",
    "returns_numpy": "returns a ndarray, expected a tensor of logits [B,10]",
    "squeezes": "returns shape [10] for one image alone, expected [1, 10]: look for squeeze()",
    "detaches": "no gradient",
    "changes_its_input": "changes its input in place: let its forward begin with x = x.clone()",
}
COMMANDS = {
    "evaluate": "evaluate --model {} --data digits --threat linf:0.1 --num-images 20",
    "teachers check": "teachers check {} --data digits --threat linf:0.1",
    "transfer": "transfer run {} --num-images 20 --out new",
    "train, the student": "train a.yaml --model {} --run new",
    "train, without an attack": "train a.yaml --method clean --model {} --run new",
    "train, a teacher": "train a.yaml --method rslad --teachers {} --run new",
    "plan": "plan a.yaml --model {}",
}


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_broken_network_is_one_line_and_nothing_is_written(
    command: str, name: str, workspace: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    before = tree(workspace)
    code, out, err = call(*COMMANDS[command].format(f"{__name__}:{name}").split())
    assert (code, out) == (2, ""), err
    (line,) = err.splitlines()
    assert line.startswith("robustill: ")
    assert f"{__name__}:{name}" in line
    assert MESSAGES[name] in line
    assert tree(workspace) == before
