"""Transfer among networks: the diagonal equals the evaluation, the rest classifies the same images."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers.evaluation_cases import THREAT, K, N, made_up, placement, trained, untrained, viewing
from helpers.small_runs import small_config, tree
from hostile_files.damage import DAMAGES
from robustill.core.errors import ConfigError, DataError, ModelError, RobustillError, RunError
from robustill.core.progress import Progress
from robustill.data import load
from robustill.evaluation.evaluate import evaluate
from robustill.evaluation.targets import evaluate_run
from robustill.evaluation.transfer import transfer, transfer_specs
from robustill.models.loading import load_network
from robustill.runs.transfer_records import TransferRecords
from robustill.training.loop import train


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    return {"trained": trained(), "untrained": untrained()}


@pytest.fixture(scope="module")
def records(networks: dict[str, nn.Module]) -> TransferRecords:
    return transfer(networks, made_up(), threat=THREAT, suite="pgd", batch_size=32)


@pytest.mark.parametrize("name", ["trained", "untrained"])
def test_the_diagonal_equals_the_evaluation(
    name: str, networks: dict[str, nn.Module], records: TransferRecords
) -> None:
    result = evaluate(networks[name], made_up(), threat=THREAT, suite="pgd", eps_curve=False)
    place = records.names.index(name)
    np.testing.assert_allclose(records.clean[place], result.clean_probabilities, atol=1e-6)
    np.testing.assert_allclose(records.adversarial[place, place], result.adversarial_probabilities, atol=1e-6)


def test_other_networks_classify_the_same_adversarial_images(
    networks: dict[str, nn.Module], records: TransferRecords
) -> None:
    result = evaluate(networks["trained"], made_up(), threat=THREAT, suite="pgd", eps_curve=False)
    assert result.example_index is not None
    assert result.example_adversarial is not None
    network = networks["untrained"].eval()
    with torch.no_grad():
        probabilities = network(torch.from_numpy(result.example_adversarial)).softmax(dim=1).numpy()
    np.testing.assert_allclose(records.adversarial[0, 1][result.example_index], probabilities, atol=1e-5)


def test_a_transfer_says_first_how_long_it_takes(
    networks: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("robustill.evaluation.worst_case.seconds_per_pass", lambda *_: 0.01)
    transfer(networks, made_up(), threat=THREAT, suite="pgd-20", num_images=20, progress=True)
    lines = [line for line in capsys.readouterr().err.splitlines() if "this machine" in line or "passes/s" in line]
    # 41 passes of each of 20 images, against two networks.
    assert lines[0] == "transfer: about 16 s on this machine, if half of the images are robust"


def test_the_progress_counts_passes_against_each_network(
    networks: dict[str, nn.Module], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Progress, "_log_interval", 0.0)
    transfer(networks, made_up(), threat=THREAT, suite="pgd-20", num_images=20, batch_size=10, progress=True)
    lines = capsys.readouterr().err.splitlines()
    shares = [int(line.split()[1].removesuffix("%")) for line in lines]
    assert shares == sorted(shares)
    # Two batches against two networks, of 41 passes an image: each is a quarter.
    assert list(dict.fromkeys(shares)) == [25, 50, 75, 100]
    assert lines[0].endswith("pgd-ce against trained")
    assert lines[-1].endswith("against untrained")


def test_modes_are_restored_and_a_subset_is_recorded(networks: dict[str, nn.Module]) -> None:
    networks["trained"].train()
    result = transfer(networks, made_up(), threat=THREAT, suite="pgd-20", num_images=30)
    assert networks["trained"].training
    assert all(each.requires_grad for each in networks["trained"].parameters())
    assert (result.conditions["num_images"], result.conditions["of_images"]) == (30, N)
    assert np.bincount(result.label).tolist() == [30 // K] * K
    assert len(transfer(networks, made_up(), threat=THREAT, suite="pgd-20", num_images=10**6).index) == N


def test_networks_that_view_feature_maps_work_and_are_restored(
    networks: dict[str, nn.Module], records: TransferRecords
) -> None:
    networks = {"trained": viewing(trained()), "untrained": untrained()}
    before = [placement(each) for each in networks.values()]
    found = transfer(networks, made_up(), threat=THREAT, suite="pgd", batch_size=32)
    np.testing.assert_allclose(found.clean, records.clean, atol=1e-5)
    assert [placement(each) for each in networks.values()] == before


def test_invalid_arguments_are_refused(networks: dict[str, nn.Module]) -> None:
    with pytest.raises(ConfigError, match="at least two networks"):
        transfer({"one": untrained()}, made_up(), threat=THREAT)
    with pytest.raises(ConfigError, match="expected a whole number of at least 1"):
        transfer(networks, made_up(), threat=THREAT, num_images=0)
    with pytest.raises(ConfigError, match="suite 'pdg' is unknown"):
        transfer(networks, made_up(), threat=THREAT, suite="pdg")
    with pytest.raises(ConfigError, match="suite deployed is for one file"):
        transfer(networks, made_up(), threat=THREAT, suite="deployed")
    wrong = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    with pytest.raises(ModelError, match="other gives 2 logits"):
        transfer({"trained": trained(), "other": wrong}, made_up(), threat=THREAT)


# --- on disk


def test_transfer_records_survive_a_round_trip(records: TransferRecords, tmp_path: Path) -> None:
    records.save(tmp_path)
    result = TransferRecords.load(tmp_path)
    assert result.names == records.names
    assert result.conditions == records.conditions
    for name in ("index", "label", "clean", "adversarial"):
        assert np.array_equal(getattr(result, name), getattr(records, name))


@pytest.mark.parametrize("file", ["transfer.npz", "transfer.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_transfer_records_raise_one_line(
    records: TransferRecords, tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    records.save(tmp_path)
    damage(tmp_path / file)
    with pytest.raises(RunError, match="robustill transfer again") as caught:
        TransferRecords.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["transfer.npz", "transfer.json"])
def test_a_flipped_bit_is_detected(records: TransferRecords, tmp_path: Path, file: str) -> None:
    records.save(tmp_path)
    content, draws = (tmp_path / file).read_bytes(), random.Random(0)
    for _ in range(200):
        changed = bytearray(content)
        changed[draws.randrange(len(changed))] ^= 1 << draws.randrange(8)
        (tmp_path / file).write_bytes(changed)
        # Whitespace between values has no meaning in JSON.
        if file == "transfer.npz" or json.loads(content) != lenient(bytes(changed)):
            with pytest.raises(RunError):
                TransferRecords.load(tmp_path)


def lenient(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def test_a_header_without_checksum_is_still_read(records: TransferRecords, tmp_path: Path) -> None:
    records.save(tmp_path)
    page = {"format": 1, "names": list(records.names), "conditions": records.conditions}
    content = (tmp_path / "transfer.npz").read_bytes()
    old = json.dumps({**page, "sha256": hashlib.sha256(content).hexdigest()})
    (tmp_path / "transfer.json").write_text(old)
    assert TransferRecords.load(tmp_path).names == records.names
    # A header with a checksum does not pass for an old one when it loses a key.
    records.save(tmp_path)
    today = json.loads((tmp_path / "transfer.json").read_text())
    for key in today:
        (tmp_path / "transfer.json").write_text(json.dumps({name: today[name] for name in today if name != key}))
        if key != "sha256":
            with pytest.raises(RunError):
                TransferRecords.load(tmp_path)
    (tmp_path / "transfer.json").write_text(json.dumps({**today, "format": 9}))
    with pytest.raises(RunError, match="format 9, expected 1"):
        TransferRecords.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": np.zeros(3, dtype=np.int64)}, "label has N = 3"),
        ({"names": ("a",)}, "clean has M = 2"),
        ({"clean": np.zeros((2, N, K))}, "clean is float64"),
        ({"clean": np.full((2, N, K), np.nan, dtype=np.float32)}, "must be in"),
        ({"label": np.full(N, K)}, "labels that are classes"),
    ],
)
def test_invalid_transfer_records_are_refused(records: TransferRecords, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
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


def test_runs_use_their_best_epoch_and_the_first_runs_threat(runs: Path) -> None:
    before = tree(runs)
    result = transfer_specs([str(runs / "first"), f"run:{runs / 'second'}@last"], **FEW)
    assert tree(runs) == before
    assert result.names == ("first", "second@last")
    assert result.conditions["threat"]["eps"] == 0.1
    assert result.conditions["networks"]["first"]["spec"] == f"run:{runs / 'first'}@best"
    (own,) = evaluate_run(runs / "first", checkpoints=["best"], eps_curve=False, **FEW).values()
    np.testing.assert_allclose(result.adversarial[0, 0], own.adversarial_probabilities, atol=1e-6)
    network = load_network(f"run:{runs / 'second'}@last").module
    with torch.no_grad():
        probabilities = network(
            load("digits", split="test").read(torch.from_numpy(result.index)).float() / 255
        ).softmax(dim=1)
    np.testing.assert_allclose(result.clean[1], probabilities.numpy(), atol=1e-6)


def test_runs_of_the_same_name_keep_their_paths(runs: Path) -> None:
    specs = [str(runs / "first"), str(runs / "other" / "first")]
    result = transfer_specs(specs, overrides=["--threat", "linf:0.02"], **FEW)
    assert result.names == tuple(specs)
    assert result.conditions["threat"]["text"] == "linf:0.02"
    assert [result.conditions["networks"][spec]["spec"] for spec in specs] == [f"run:{spec}@best" for spec in specs]


@pytest.mark.parametrize(
    ("words", "overrides", "message"),
    [
        (["{}/first", "{}/first"], [], "named twice"),
        (["{}/first"], [], "at least two networks"),
        (["torch.nn:Identity", "torch.nn:Flatten"], [], "none of the networks is a run"),
        (["{}/first", "{}/nowhere"], [], "nowhere"),
        (["{}/first", "{}/second"], ["--optim.epochs", "3"], "--optim has no effect on a transfer"),
    ],
)
def test_invalid_specifications_are_refused(runs: Path, words: list[str], overrides: list[str], message: str) -> None:
    with pytest.raises(RobustillError, match=message):
        transfer_specs([word.format(runs) for word in words], overrides=overrides, **FEW)


def test_the_header_is_json(records: TransferRecords, tmp_path: Path) -> None:
    records.save(tmp_path)
    assert json.loads((tmp_path / "transfer.json").read_text())["names"] == ["trained", "untrained"]
