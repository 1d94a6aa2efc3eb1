"""The radius and the steps of an epoch."""

from __future__ import annotations

from helpers.small_runs import small_config
from robustill.training.adversary import eps_in_epoch, steps_in_epoch


def test_without_growth_every_epoch_has_the_whole_radius_and_all_steps() -> None:
    config = small_config(attack={"steps": 3}, optim={"epochs": 4})
    assert {eps_in_epoch(config, epoch) for epoch in range(4)} == {config.threat.eps}
    assert {steps_in_epoch(config, epoch) for epoch in range(4)} == {3}


def test_both_grow_linearly_over_a_share_of_the_epochs() -> None:
    config = small_config(
        threat={"norm": "linf", "eps": 0.08}, attack={"steps": 5, "first_steps": 1, "first_eps": 0.0, "grow": 0.5},
        optim={"epochs": 10},
    )  # fmt: skip
    # Five of the ten epochs grow: 0, 1/4, 2/4, 3/4 and the whole of the way.
    assert [round(eps_in_epoch(config, epoch), 9) for epoch in (0, 1, 2, 4, 9)] == [0, 0.02, 0.04, 0.08, 0.08]
    assert [steps_in_epoch(config, epoch) for epoch in (0, 1, 2, 4, 9)] == [1, 2, 3, 5, 5]
