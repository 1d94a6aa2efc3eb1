"""Several processes train the same student as one process."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers.processes import together
from helpers.small_runs import lines, small_config, small_values, weights
from robustill.core.distributed import ProcessGroup, SyncBatchNormMode, all_reduce, all_reduce_with_gradient, shard_of
from robustill.core.errors import ConfigError
from robustill.runs.directory import RunDirectory
from robustill.runs.dynamics import read_dynamics
from robustill.training.loop import train


def training(rank: int, values: dict[str, Any], run: Path) -> None:
    train(small_config(**values), run, progress=False)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("teacher") / "run"
    train(small_config(seed=5), run, progress=False)
    return run


def assert_same_run(found: Path, expected: Path, tolerance: float = 2e-4) -> None:
    checkpoints = [RunDirectory(run).checkpoints.latest() for run in (found, expected)]
    mine, other = ({**each.model, **each.state["method"]} for each in checkpoints if each is not None)
    assert mine.keys() == other.keys()
    for name in mine:
        # The rows of images that were not trained on are NaN.
        torch.testing.assert_close(
            mine[name], other[name], rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda m, n=name: n + m
        )
    for line, like in zip(lines(found), lines(expected), strict=True):
        assert line == pytest.approx(like, rel=1e-3, abs=1e-6)


# Gradients of nearly zero have signs that rounding decides; steps along the gradient itself keep such noise small.
SMOOTH = {"threat": {"norm": "l2", "eps": 0.5}, "attack": {"steps": 2, "step_size": 0.2}}


slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"optim": {"ema": 0.9, "clip_norm": 1.0}},
        # Without BatchNorm, which would see other parts of a batch together.
        {"optim": {"accumulate": 2}, "model": {"name": "cnn_a"}},
        slow({"optim": {"awp": 0.01, "swa": 0.0}}),
        slow({"compute": {"recompute": True}, "model": {"name": "resnet8", "width": 4}}),
        {"data": {"cutmix": 0.5, "augmentation": ["crop"]}},
        slow({"data": {"train_size": 43}}),
        slow({"attack": {"batchnorm": "train"}}),
        {"method": {"name": "akd"}},
        slow({"method": {"name": "fair_ard"}}),
        slow({"method": {"name": "sgls"}}),
        {"method": {"name": "te", "begin": 0.0}},
        slow({"method": {"name": "adr"}, "optim": {"ema": 0.9}}),
        slow({"method": {"name": "rebat", "begin": 0.0}, "optim": {"ema": 0.9}}),
        slow({"method": {"name": "absld"}}),
        slow({"method": {"name": "dgad"}}),
        # Their adversary begins where its objective is flat, so that rounding chooses the way.
        {"method": {"name": "dkl"}, "attack": {"steps": 0}},
        slow({"method": {"name": "lbgat", "beta": 6.0}, "attack": {"steps": 0}}),
        slow({"method": {"name": "hat"}, "attack": {"steps": 0}}),
    ],
    ids=lambda change: "-".join(str(value) for group in change.values() for value in group.values()) or "at",
)
def test_two_processes_give_the_weights_of_one(tmp_path: Path, teacher: Path, change: dict[str, Any]) -> None:
    values = {**SMOOTH, **change, "optim": {"learning_rate": 0.02, **change.get("optim", {})}}
    values["attack"] = {**SMOOTH["attack"], **change.get("attack", {})}
    if change.get("method", {}).get("name") in ("akd", "fair_ard", "absld", "dgad"):
        values["teachers"] = [f"run:{teacher}@best"]
    if change.get("method", {}).get("name") == "hat":
        values["teachers"] = [{"spec": f"run:{teacher}@best", "role": "natural"}]
    train(small_config(**values), tmp_path / "one", progress=False)
    together(2, tmp_path / "room", training, values, tmp_path / "two")
    assert_same_run(tmp_path / "two", tmp_path / "one")


def test_two_processes_give_the_records_of_one(tmp_path: Path) -> None:
    train(small_config(**SMOOTH), tmp_path / "one", progress=False)
    together(2, tmp_path / "room", training, SMOOTH, tmp_path / "two")
    one, two = (read_dynamics(tmp_path / run) for run in ("one", "two"))
    assert np.array_equal(one.ids, two.ids)
    assert np.isfinite(two.adversarial.loss).all()
    np.testing.assert_allclose(two.adversarial.loss, one.adversarial.loss, rtol=2e-2, atol=2e-3)
    np.testing.assert_allclose(two.adversarial.margin, one.adversarial.margin, rtol=2e-2, atol=2e-3)


def test_a_run_resumes_with_another_number_of_processes(tmp_path: Path) -> None:
    values = {**SMOOTH, "optim": {"epochs": 3, "learning_rate": 0.02}}
    train(small_config(**values), tmp_path / "one", progress=False)
    whole = tmp_path / "whole"
    together(2, tmp_path / "room", stopped_after_an_epoch, values, whole)
    assert len(lines(whole)) == 1
    together(3, tmp_path / "room", training, values, whole)
    assert_same_run(whole, tmp_path / "one")
    before = weights(whole)
    train(small_config(**values), whole, progress=False)
    assert weights(whole) == before


@pytest.mark.slow
@pytest.mark.parametrize("agents", [1, 2])
def test_torchrun_trains_one_student(tmp_path: Path, agents: int) -> None:
    words = ["train", "digits_at", *(f"--{key}" for key in ("optim.epochs=2", "validation.every=1", "run=run"))]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(agents)]
    command += ["--nproc-per-node", str(2 // agents), "--rdzv-backend", "c10d", "--rdzv-id", "test"]
    # By a file: a port that is free now may be taken when it comes to be opened.
    command += ["--rdzv-endpoint", str(tmp_path / "rendezvous"), "--rdzv-conf", "store_type=file"]
    command += ["-m", "--", "robustill", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(agents)
    ]
    shown = [each.communicate(timeout=600) for each in started]
    assert [each.returncode for each in started] == [0] * agents, shown
    # Only the main process prints the result.
    assert sum(out.count(b"robustill evaluate run") for out, _ in shown) == 1
    alone = [sys.executable, "-m", "robustill", *words[:-1], "--run=alone"]
    subprocess.run(alone, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=600)
    for mine, other in zip(lines(tmp_path / "run"), lines(tmp_path / "alone"), strict=True):
        assert mine == pytest.approx(other, abs=0.02)


def stopped_after_an_epoch(rank: int, values: dict[str, Any], run: Path) -> None:
    from robustill.training import loop as module

    original = module._Loop._train_epoch

    def once(loop: Any, bar: Any) -> Any:
        if loop.epochs_done == 1:
            raise KeyboardInterrupt
        return original(loop, bar)

    module._Loop._train_epoch = once  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        train(small_config(**values), run, progress=False)


def normalising(rank: int, folder: Path) -> None:
    x, towards = torch.load(folder / "x.pt", weights_only=True)
    own = slice(0, 2) if rank == 0 else slice(2, 7)
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
    leaf = x[own].clone().requires_grad_(True)
    with SyncBatchNormMode():
        y = norm(leaf)
    (y * towards[own]).sum().backward()
    with torch.no_grad(), SyncBatchNormMode():
        norm.eval()(x[own])
    found = {"y": y, "grad": leaf.grad, "weight": all_reduce(norm.weight.grad), "bias": all_reduce(norm.bias.grad)}
    torch.save({**found, "mean": norm.running_mean, "var": norm.running_var}, folder / f"found-{rank}.pt")


def test_batchnorm_is_synchronised_over_unequal_shares(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x = 100 + 5 * torch.randn(7, 3, 4, 4, generator=generator)
    towards = torch.randn(x.shape, generator=generator)
    torch.save((x, towards), tmp_path / "x.pt")
    together(2, tmp_path / "room", normalising, tmp_path)
    norm, leaf = nn.BatchNorm2d(3), x.clone().requires_grad_(True)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
    y = norm(leaf)
    (y * towards).sum().backward()
    zero, one = (torch.load(tmp_path / f"found-{rank}.pt", weights_only=True) for rank in (0, 1))
    torch.testing.assert_close(torch.cat([zero["y"], one["y"]]), y.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cat([zero["grad"], one["grad"]]), leaf.grad, rtol=1e-4, atol=1e-4)
    for each in (zero, one):
        torch.testing.assert_close(each["weight"], norm.weight.grad, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(each["bias"], norm.bias.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(each["mean"], norm.running_mean)
        torch.testing.assert_close(each["var"], norm.running_var, rtol=1e-4, atol=1e-4)


def adding(rank: int, folder: Path) -> None:
    value = torch.tensor([1.0 + rank, 10.0], requires_grad=True)
    total = all_reduce_with_gradient(value)
    # Process 0 takes the first entry once, process 1 three times.
    (total[0] * (1 + 2 * rank)).backward()
    torch.save((total.detach(), value.grad), folder / f"sum-{rank}.pt")


def test_all_reduce_sends_its_gradient_to_every_process(tmp_path: Path) -> None:
    together(2, tmp_path / "room", adding, tmp_path)
    for rank in (0, 1):
        total, grad = torch.load(tmp_path / f"sum-{rank}.pt", weights_only=True)
        assert total.tolist() == [3.0, 20.0]
        assert grad.tolist() == [4.0, 0.0]


@pytest.mark.parametrize(("total", "number"), [(7, 3), (2, 2), (64, 5)])
def test_shares_are_complete_and_nearly_equal(total: int, number: int) -> None:
    shares = [range(total)[shard_of(total, rank, number)] for rank in range(number)]
    assert [each for share in shares for each in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert shares[1] == range(total)[ProcessGroup(1, number).part(total)]


def refused(rank: int, values: dict[str, Any], run: Path, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(small_config(**values), run, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"train_size": 41}}, "a batch of 1 images .of 41 in batches of 20. is too small for 2 processes"),
        (
            {"data": {"train_size": 47}, "optim": {"accumulate": 4}},
            "a batch of 7 images gives 2 processes 3 or 4 images each, not equally many parts by optim.accumulate 4",
        ),
        (
            {"data": {"train_size": 44}, "optim": {"batch_size": 21, "accumulate": 11}},
            "a batch of 21 images gives 2 processes 10 or 11 images each, not equally many parts",
        ),
        ({"method": {"name": "saad"}}, "method saad compares the images of a whole batch, which 2 processes"),
        (
            {"method": {"name": "igdm", "base": "dkl", "base_options": {"gamma": 0.2}}},
            "method igdm compares the images of a whole batch, which 2 processes",
        ),
    ],
)
def test_batches_that_cannot_be_shared_are_refused(
    tmp_path: Path, teacher: Path, change: dict[str, Any], message: str
) -> None:
    values = {**change, "teachers": [f"run:{teacher}@best"]} if "method" in change else change
    together(2, tmp_path / "room", refused, values, tmp_path / "run", message)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert small_values()["optim"]["batch_size"] == 20
