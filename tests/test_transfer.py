"""Transfer among networks: the diagonal is the evaluation, the rest is asked of the same images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from evaluation_cases import THREAT, K, N, made_up, trained, untrained
from robustill.data import load
from robustill.errors import ConfigError, DataError, ModelError, RobustillError, RunError
from robustill.evaluation import evaluate
from robustill.judge import evaluate_run
from robustill.loading import load_network
from robustill.training import train
from robustill.transfer import transfer, transfer_specs
from robustill.transfer_records import TransferRecords
from small_runs import small_config, tree


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    return {"trained": trained(), "untrained": untrained()}


@pytest.fixture(scope="module")
def records(networks: dict[str, nn.Module]) -> TransferRecords:
    return transfer(networks, made_up(), threat=THREAT, suite="pgd", batch_size=32)


@pytest.mark.parametrize("name", ["trained", "untrained"])
def test_against_itself_a_network_is_as_right_as_its_evaluation_says(
    name: str, networks: dict[str, nn.Module], records: TransferRecords
) -> None:
    found = evaluate(networks[name], made_up(), threat=THREAT, suite="pgd", eps_curve=False)
    place = records.names.index(name)
    np.testing.assert_allclose(records.clean[place], found.clean_probabilities, atol=1e-6)
    np.testing.assert_allclose(records.adversarial[place, place], found.adversarial_probabilities, atol=1e-6)


def test_the_others_are_asked_of_those_very_images(networks: dict[str, nn.Module], records: TransferRecords) -> None:
    found = evaluate(networks["trained"], made_up(), threat=THREAT, suite="pgd", eps_curve=False)
    assert found.example_index is not None
    assert found.example_adversarial is not None
    network = networks["untrained"].eval()
    with torch.no_grad():
        said = network(torch.from_numpy(found.example_adversarial)).softmax(dim=1).numpy()
    np.testing.assert_allclose(records.adversarial[0, 1][found.example_index], said, atol=1e-5)


def test_modes_are_given_back_and_a_part_is_called_one(networks: dict[str, nn.Module]) -> None:
    networks["trained"].train()
    found = transfer(networks, made_up(), threat=THREAT, suite="pgd-20", num_images=30)
    assert networks["trained"].training
    assert all(each.requires_grad for each in networks["trained"].parameters())
    assert (found.conditions["num_images"], found.conditions["of_images"]) == (30, N)
    assert np.bincount(found.label).tolist() == [30 // K] * K
    assert len(transfer(networks, made_up(), threat=THREAT, suite="pgd-20", num_images=10**6).index) == N


def test_what_cannot_be(networks: dict[str, nn.Module]) -> None:
    with pytest.raises(ConfigError, match="at least two networks"):
        transfer({"one": untrained()}, made_up(), threat=THREAT)
    with pytest.raises(ConfigError, match="expected at least 1"):
        transfer(networks, made_up(), threat=THREAT, num_images=0)
    with pytest.raises(ConfigError, match="suite 'pdg' is unknown"):
        transfer(networks, made_up(), threat=THREAT, suite="pdg")
    wrong = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    with pytest.raises(ModelError, match="other gives 2 logits"):
        transfer({"trained": trained(), "other": wrong}, made_up(), threat=THREAT)


# --- on disk


def test_records_come_back(records: TransferRecords, tmp_path: Path) -> None:
    records.save(tmp_path)
    found = TransferRecords.load(tmp_path)
    assert found.names == records.names
    assert found.conditions == records.conditions
    for name in ("index", "label", "clean", "adversarial"):
        assert np.array_equal(getattr(found, name), getattr(records, name))


@pytest.mark.parametrize("file", ["transfer.npz", "transfer.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "changed"])
def test_damaged_records_are_one_line(records: TransferRecords, tmp_path: Path, file: str, damage: str) -> None:
    records.save(tmp_path)
    path = tmp_path / file
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(content.replace(b'"format": 1', b'"format": 9') if file.endswith("json") else content + b"x")
    with pytest.raises(RunError, match="robustill transfer again") as caught:
        TransferRecords.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"label": np.zeros(3, dtype=np.int64)}, "label has N = 3"),
        ({"names": ("a",)}, "clean has M = 2"),
        ({"clean": np.zeros((2, N, K))}, "clean is float64"),
        ({"clean": np.full((2, N, K), np.nan, dtype=np.float32)}, "must be in"),
        ({"label": np.full(N, K)}, "labels that are classes"),
    ],
)
def test_records_that_cannot_be(records: TransferRecords, change: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        TransferRecords(**{**vars(records), **change})


# --- of runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("runs")
    for number, name in enumerate(("first", "second")):
        train(small_config(seed=number), room / name, progress=False)
    train(small_config(threat={"eps": 0.05}), room / "other" / "first", progress=False)
    return room


FEW: dict[str, Any] = {"suite": "pgd-20", "num_images": 20, "progress": False}


def test_runs_are_taken_at_their_best_under_the_first_ones_threat(runs: Path) -> None:
    before = tree(runs)
    found = transfer_specs([str(runs / "first"), f"run:{runs / 'second'}@last"], **FEW)
    assert tree(runs) == before
    assert found.names == ("first", "second@last")
    assert found.conditions["threat"]["eps"] == 0.1
    assert found.conditions["networks"]["first"]["spec"] == f"run:{runs / 'first'}@best"
    (own,) = evaluate_run(runs / "first", checkpoints=["best"], eps_curve=False, **FEW).values()
    np.testing.assert_allclose(found.adversarial[0, 0], own.adversarial_probabilities, atol=1e-6)
    network = load_network(f"run:{runs / 'second'}@last").module
    with torch.no_grad():
        said = network(load("digits", split="test").read(torch.from_numpy(found.index)).float() / 255).softmax(dim=1)
    np.testing.assert_allclose(found.clean[1], said.numpy(), atol=1e-6)


def test_runs_of_one_name_keep_their_paths(runs: Path) -> None:
    specs = [str(runs / "first"), str(runs / "other" / "first")]
    found = transfer_specs(specs, overrides=["--threat", "linf:0.02"], **FEW)
    assert found.names == tuple(specs)
    assert found.conditions["threat"]["text"] == "linf:0.02"


@pytest.mark.parametrize(
    ("words", "overrides", "says"),
    [
        (["{}/first", "{}/first"], [], "named twice"),
        (["{}/first"], [], "at least two networks"),
        (["torch.nn:Identity", "torch.nn:Flatten"], [], "none of the networks is a run"),
        (["{}/first", "{}/nowhere"], [], "nowhere"),
        (["{}/first", "{}/second"], ["--optim.epochs", "3"], "--optim has no effect on a transfer"),
    ],
)
def test_specifications_that_cannot_be(runs: Path, words: list[str], overrides: list[str], says: str) -> None:
    with pytest.raises(RobustillError, match=says):
        transfer_specs([word.format(runs) for word in words], overrides=overrides, **FEW)


def test_the_header_is_json(records: TransferRecords, tmp_path: Path) -> None:
    records.save(tmp_path)
    assert json.loads((tmp_path / "transfer.json").read_text())["names"] == ["trained", "untrained"]
