"""What a killed evaluation needs to go on."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from robustill.attacks.state import AutoAttackState
from robustill.core.errors import RunError

X = torch.rand(3, 1, 2, 2, requires_grad=True)


def test_the_initial_state_is_empty():
    state = AutoAttackState.initial("here", X, 2)
    assert state.stages_done.tolist() == [0, 0, 0]
    assert state.broken_by.tolist() == [-1, -1, -1]
    assert state.margin.tolist() == [-torch.inf] * 3
    for tensor, kind in ((state.seconds, torch.float64), (state.model_seconds, torch.float64)):
        assert tensor.tolist() == [0.0, 0.0]
        assert tensor.dtype == kind
    assert state.passes.tolist() == [0, 0]
    assert state.passes.dtype == state.stages_done.dtype == state.broken_by.dtype == torch.int64
    state.x_adv[0] = 9
    assert X.max() < 9, "the images are copied"


def test_a_state_reads_back_equal_and_writable():
    state = AutoAttackState.initial("here", X, 2)
    state.passes[1] = 7
    again = AutoAttackState.from_arrays(state.arrays())
    assert again.conditions == "here"
    again.passes[0] += 1
    assert again.passes.tolist() == [1, 7]
    assert state.passes.tolist() == [0, 7]
    assert torch.equal(again.x_adv, state.x_adv)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"margin": None, "conditions": None}, "the saved state lacks conditions, margin: delete it to begin again"),
        (
            {"passes": np.array(["a"]), "seconds": np.array([True])},
            "the saved state is damaged: seconds is bool; delete it to begin again",
        ),
    ],
)
def test_damaged_states_are_refused(change, line):
    arrays = {**AutoAttackState.initial("here", X, 2).arrays(), **change}
    with pytest.raises(RunError, match=f"^{re.escape(line)}$"):
        AutoAttackState.from_arrays({key: value for key, value in arrays.items() if value is not None})


def test_the_fingerprint_of_the_network_is_stored_and_may_be_missing():
    state = AutoAttackState.initial("here", X, 2)
    assert AutoAttackState.from_arrays(state.arrays()).fingerprint is None
    state.fingerprint = {"format": 1, "images": 8}
    assert AutoAttackState.from_arrays(state.arrays()).fingerprint == state.fingerprint
    arrays = {**state.arrays(), "fingerprint": np.array("{")}
    with pytest.raises(RunError, match="its fingerprint is wrong; delete it to begin again"):
        AutoAttackState.from_arrays(arrays)
