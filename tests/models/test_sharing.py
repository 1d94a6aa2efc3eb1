"""A pushed network is read back with its weights, its threat, its classes and its evaluations."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from helpers.hub_server import served
from helpers.small_runs import small_config
from robustill.core.errors import CheckpointError, ConfigError, ModelError
from robustill.evaluation.targets import evaluate_run
from robustill.models.card import evaluations_table, metadata
from robustill.models.export import export_network
from robustill.models.loading import load_network
from robustill.models.sharing import from_pretrained, push_folder
from robustill.threat import Threat
from robustill.training.loop import train

X = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    train(small_config(data={"train_size": 400}, model={"width": 4}, optim={"epochs": 3}), run, progress=False)
    evaluate_run(run, checkpoints=["last"], suite="pgd-20", num_images=20, progress=False)
    return run


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    export_network(f"run:{run}@last", tmp_path / "net")
    return tmp_path / "net"


def results(run: Path) -> dict[str, Any]:
    (evaluation,) = (run / "evaluations").iterdir()
    return dict(json.loads((evaluation / "summary.json").read_text())["results"])


def assert_is_the_run(name: str | Path, run: Path) -> None:
    found, expected = from_pretrained(name), results(run)
    assert torch.equal(found.module(X), load_network(f"run:{run}@last").module(X))
    assert found.threat == Threat(norm="linf", eps=0.1)
    assert found.classes == tuple("0123456789")
    (evaluation,) = found.evaluations
    assert (evaluation.data, evaluation.split, evaluation.num_images, evaluation.suite) == (
        "digits",
        "test",
        20,
        "pgd-20",
    )
    for key in ("clean_accuracy", "robust_accuracy", "ece_clean", "ece_adversarial", "ece_pgd"):
        assert getattr(evaluation, key) == expected[key]


def test_a_folder_is_read_back_with_its_card(folder: Path, run: Path) -> None:
    assert_is_the_run(folder, run)
    sha256 = load_network(f"hf:{folder}").sha256
    assert from_pretrained(folder, sha256=sha256).network.sha256 == sha256
    with pytest.raises(CheckpointError, match="expected 0000"):
        from_pretrained(folder, sha256="0" * 64)


def test_a_folder_of_an_earlier_version_has_an_empty_card(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    for key in ("classes", "threat", "evaluations"):
        del content[key]
    (folder / "config.json").write_text(json.dumps(content))
    found = from_pretrained(folder)
    assert (found.threat, found.classes, found.evaluations) == (None, (), ())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("classes", ["a"], "1 names of classes for 10 classes"),
        ("classes", "0123456789", "not a list of names"),
        ("threat", {"norm": "linf", "eps": -1}, "eps"),
        ("threat", {"norm": "l7", "eps": 1}, "l7"),
        ("threat", "linf:0.1", "not a norm and a radius"),
        ("evaluations", [{"data": 3}], "data of an evaluation is missing or damaged"),
        ("evaluations", {"a": 1}, "not a list"),
    ],
)
def test_a_damaged_card_is_refused_in_one_line(folder: Path, key: str, value: Any, message: str) -> None:
    content = {**json.loads((folder / "config.json").read_text()), key: value}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message) as caught:
        from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_the_metadata_hold_the_evaluation(folder: Path, run: Path) -> None:
    _, header, text = (folder / "README.md").read_text().split("---\n", 2)
    content, expected = yaml.safe_load(header), results(run)
    assert "&" not in header
    assert text.startswith("\n# net\n")
    assert content["library_name"] == "robustill"
    (index,) = content["model-index"]
    (result,) = index["results"]
    assert result["task"] == {"type": "image-classification"}
    assert result["dataset"]["args"] == {"num_images": 20, "of_images": 500, "threat": "linf:0.1", "attack": "pgd-20"}
    assert {metric["name"]: metric["value"] for metric in result["metrics"]} == {
        "clean accuracy": round(expected["clean_accuracy"], 4),
        "robust accuracy, pgd-20, linf:0.1": round(expected["robust_accuracy"], 4),
        "ECE, clean images": round(expected["ece_clean"], 4),
        "ECE, PGD-10 images, linf:0.1": round(expected["ece_pgd"], 4),
    }
    assert result["metrics"][-1]["args"] == {"threat": "linf:0.1", "attack": "PGD-10"}


def test_a_card_without_the_fixed_attack_shows_the_images_that_the_suite_kept(folder: Path, run: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    del content["evaluations"][0]["ece_pgd"]
    (folder / "config.json").write_text(json.dumps(content))
    found, expected = from_pretrained(folder), results(run)
    assert found.evaluations[0].ece_pgd is None
    table = "\n".join(evaluations_table(found.evaluations))
    assert "ECE adversarial" in table
    assert f"| {expected['ece_adversarial']:.3f} |" in table
    (entry,) = yaml.safe_load(metadata("net", found.evaluations).strip("-\n"))["model-index"][0]["results"]
    assert entry["metrics"][-1]["name"] == "ECE, adversarial images, pgd-20, linf:0.1"
    assert entry["metrics"][-1]["value"] == round(expected["ece_adversarial"], 4)


class FakeHub:
    """A module in the place of huggingface_hub, whose hub is a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[str] = []
        self.ModelCard = SimpleNamespace(load=self._load)
        self.HfApi = lambda: SimpleNamespace(create_repo=self._create, upload_folder=self._upload)

    def _load(self, file: Path) -> None:
        yaml.safe_load(file.read_text().split("---\n")[1])["library_name"]

    def _create(self, name: str, *, exist_ok: bool) -> None:
        if name.startswith("forbidden/"):
            raise OSError("403 Forbidden\nlog in")
        self.made.append(name)

    def _upload(self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str) -> Any:
        (self.folder / repo_id).mkdir(parents=True)
        for name in allow_patterns:
            shutil.copy(folder_path / name, self.folder / repo_id / name)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def snapshot_download(self, name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        return str(self.folder / name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    hub = FakeHub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    return hub


def test_a_pushed_network_comes_back(folder: Path, run: Path, hub: FakeHub) -> None:
    assert push_folder(folder, "owner/net") == "https://hub/owner/net/commit/1"
    assert hub.made == ["owner/net"]
    assert_is_the_run("owner/net", run)


def test_nothing_is_uploaded_when_something_is_wrong(
    folder: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("net", "owner/", "owner/net/more", "https://hub/owner/net", "owner/../net"):
        with pytest.raises(ConfigError, match="expected OWNER/NAME on the Hugging Face hub"):
            push_folder(folder, name)
    with pytest.raises(ModelError, match=r"forbidden/net cannot be written \(403 Forbidden.*\): log in with"):
        push_folder(folder, "forbidden/net")
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text("---\n: [\n---\n")
    with pytest.raises(ModelError, match="cannot be written"):
        push_folder(folder, "owner/net")
    (folder / "README.md").write_text(card)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json: push a folder that `robustill export` wrote"):
        push_folder(folder, "owner/net")
    assert not hub.made
    assert not hub.folder.exists()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"--push needs the extra `hub`: pip install 'robustill\[hub\]'"):
        push_folder(folder, "owner/net")


# In a process of its own: the client reads the address of the hub when it is imported.
REAL = """
import sys
import huggingface_hub
from robustill.models.sharing import from_pretrained, push_folder

print(push_folder(__import__("pathlib").Path(sys.argv[1]), "owner/net"))
found = from_pretrained("owner/net")
print(found.threat, len(found.classes), found.evaluations[0].suite)
card = huggingface_hub.ModelCard.load(sys.argv[1] + "/README.md").data
print(card.model_name, sorted(each.metric_name for each in card.eval_results))
"""


def test_the_client_of_the_hub_uploads_and_downloads(folder: Path, tmp_path: Path) -> None:
    with served() as server:
        environment = {
            **os.environ,
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_TOKEN": "hf_test",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        command = [sys.executable, "-c", REAL, str(folder)]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
        assert ended.returncode == 0, ended.stderr
        assert server.files == {each.name: each.read_bytes() for each in folder.iterdir()}
        url, read, card = ended.stdout.splitlines()
        assert url.startswith(f"{server.url}/owner/net/commit/")
        assert read == "linf:0.1 10 pgd-20"
        assert card.startswith("net ['ECE, PGD-10 images, linf:0.1', 'ECE, clean images'")
