"""The benchmark of seconds to a robust accuracy: it runs in miniature, goes on where it stopped, and reads right."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.small_runs import small_config
from robustill import autoattack
from robustill.methods import AT, Batch
from robustill.training.step import Step

SPEED = Path(__file__).parents[2] / "benchmarks" / "speed"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SPEED))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_it_runs_to_its_end_in_miniature_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import time_to_robust as script

    made = []

    def here(function, run):  # type: ignore[no-untyped-def]
        made.append((function.__name__, run.arm, run.budget))
        return function(run)

    monkeypatch.setattr(script, "in_own_process", here)
    monkeypatch.setattr(script, "autoattack", partial(autoattack, version=["apgd-ce"], steps=2, restarts=1))
    monkeypatch.setattr(script, "HELD_OUT", {"digits": 30})
    monkeypatch.setattr(script, "NETWORKS", {"resnet8": {"name": "resnet8", "width": 4}})
    out, figure = tmp_path / "found.json", tmp_path / "figure.svg"
    words = ["digits", "--arms", "plain", "n-fgsm", "noise-guard", "--budgets", "1", "2", "--seeds", "1"]
    words += ["--train-images", "100", "--runs", str(tmp_path / "runs"), "--out", str(out), "--figure", str(figure)]
    script.main([*words, "--images", "0"])
    order = [(arm, budget) for budget in (1, 2) for arm in ("plain", "n-fgsm", "noise-guard")]
    assert made == [("trained", *each) for each in order]
    # As after a kill in the last run: with test images all are attacked, and only that one is trained.
    made.clear()
    file = tmp_path / "runs" / "runs.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    script.main([*words, "--images", "2"])
    assert made == [*(("attacked", *each) for each in order[:-1]), ("trained", *order[-1]), ("attacked", *order[-1])]
    made.clear()
    script.main([*words, "--images", "2"])
    assert made == []
    assert len(list((tmp_path / "runs").glob("*.safetensors"))) == len(order)
    found = json.loads(out.read_text())
    assert [(row["arm"], row["budget"]) for row in found["runs"]] == order
    for row in found["runs"]:
        assert [point["epoch"] for point in row["curve"]] == [1, 2][: row["budget"]]
        assert row["seconds"] == row["curve"][-1]["seconds"] > 0
        assert row["held_out"] == {key: row["curve"][-1][key] for key in ("clean", "robust")}
        assert row["autoattack"]["images"] == 2
    assert b"<svg" in figure.read_bytes()
    assert "plain loop" in capsys.readouterr().out


def rows_of(script, seconds_per_octave: dict[str, float], seeds: int = 2) -> list[dict]:  # type: ignore[no-untyped-def]
    """Families whose robust accuracy grows with the logarithm of seconds, each from .2 in steps of .02 a doubling."""
    rows = []
    for seed in range(seeds):
        for family, first in seconds_per_octave.items():
            for number in range(4):
                seconds = first * 2**number * (1 + seed)
                rows.append({
                    "family": family, "seed": seed, "seconds": seconds, "held_out": {"robust": 0.2 + 0.02 * number},
                })  # fmt: skip
            # A run that a quicker one exceeds changes nothing.
            rows.append({"family": family, "seed": seed, "seconds": 2**5 * first, "held_out": {"robust": 0.1}})
    return rows


def test_the_ratio_is_that_of_seconds_at_equal_robust_accuracy() -> None:
    import time_to_robust as script

    rows = rows_of(script, {script.PLAIN: 120.0, script.OURS: 10.0, "N-FGSM": 30.0})
    found = script.fronts(rows, images=0)
    levels = script.common_levels(found)
    assert levels == pytest.approx([0.22, 0.24, 0.26])
    for number, row in enumerate(script.compared(found, levels), 1):
        ours = row["families"][script.OURS]
        assert ours["seconds"] == pytest.approx([10 * 2**number, 20 * 2**number])
        assert ours["plain_by_it"]["mean"] == pytest.approx(12)
        assert ours["plain_by_it"]["range"] == pytest.approx([12, 12])
        assert row["families"]["N-FGSM"]["plain_by_it"]["mean"] == pytest.approx(4)
    assert script.seconds_to(0.21, found[script.OURS][0]) == pytest.approx(10 * math.sqrt(2))


def test_nothing_is_extrapolated() -> None:
    import time_to_robust as script

    points = [(1.0, 0.2), (2.0, 0.3)]
    assert script.seconds_to(0.2, points) == 1.0
    assert script.seconds_to(0.19, points) is None
    assert script.seconds_to(0.31, points) is None
    rows = rows_of(script, {script.PLAIN: 120.0, script.OURS: 10.0})
    for row in rows:
        row["held_out"]["robust"] += 0.5 * (row["family"] == script.OURS)
    # Their ranges do not meet.
    assert script.common_levels(script.fronts(rows, images=0)) == []
    # With one seed of two a level is not reached.
    row = {"family": "N-FGSM", "seed": 0, "seconds": 1.0, "held_out": {"robust": 0.24}}
    rows = [*rows_of(script, {script.PLAIN: 120.0, script.OURS: 10.0}), row, {**row, "seed": 1, "seconds": 9.0}]
    rows += [{**row, "seconds": 2.0, "held_out": {"robust": 0.3}}]
    [compared] = script.compared(script.fronts(rows, images=0), [0.25])
    assert "plain_by_it" not in compared["families"]["N-FGSM"]
    assert "not enclosed" in script.cell(compared["families"]["N-FGSM"])


@pytest.mark.parametrize(
    "attack", [{"steps": 3}, {"steps": 1, "noise": 0.0, "step_size": 0.3}, {"steps": 2, "batchnorm": "train"}]
)
def test_the_plain_loop_makes_the_same_step_as_ours_in_float32(attack: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    from steps import plain_step

    # The start without its random numbers is x itself.
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.full_like(x, 0.5))
    config = small_config(attack={"step_size": 0.03, **attack})
    own = {key: value for key, value in attack.items() if key != "steps"}
    trained = []
    for is_plain in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
        x, y = torch.rand(8, 1, 6, 6), torch.arange(8) % 3
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if is_plain:
            plain_step(model, optimizer, x, y, config)
        else:
            own = {"step_size": 0.03, "start": None if "noise" in attack else "clean", **own}
            step = Step(model, AT(), None, config.threat.build(), steps=attack["steps"], **own)
            step(Batch(x=x, y=y, index=torch.arange(8))).loss.mean().backward()
            optimizer.step()
        trained.append(model.state_dict())
    for name, value in trained[0].items():
        torch.testing.assert_close(value, trained[1][name])
