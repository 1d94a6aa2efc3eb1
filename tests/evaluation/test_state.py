"""The state of an evaluation: a killed one resumes with the same records; other conditions are refused."""

from __future__ import annotations

import errno
import importlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.evaluation_cases import THREAT, made_up, trained
from helpers.records_by_hand import save_records
from robustill.attacks.suites import SUITES, Suite
from robustill.core.checksums import with_checksum
from robustill.core.errors import ModelError, RunError
from robustill.evaluation.state import EvaluationState
from robustill.runs.records import Records

evaluate = importlib.import_module("robustill.evaluation.evaluate").evaluate
EXACT = ("index", "label", "robust", "broken_by", "robust_at_eps", "example_index")
NEAR = (
    *("clean_probabilities", "adversarial_probabilities", "margin", "distance", "example_adversarial"),
    "pgd_probabilities",
)


def settings(suite: str) -> dict[str, Any]:
    if suite == "short":
        SUITES["short"] = Suite(
            autoattack="standard", budgets={"steps": 6, "queries": 30}, stages=SUITES["standard"].stages
        )
    return {"threat": THREAT, "suite": suite, "batch_size": 13, "num_images": 80, "masking": False}


def evaluate_until(state: Path, suite: str, writes: int) -> None:
    """Evaluate in a process of its own that is killed right before one of its writes becomes visible."""
    writes_left, replace = writes, Path.replace

    def counting_replace(self: Path, target: Path) -> Path:
        nonlocal writes_left
        writes_left -= 1
        if writes_left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    Path.replace = counting_replace  # type: ignore[method-assign]
    torch.set_num_threads(1)
    evaluate(trained(), made_up(), state=state, **settings(suite))


@pytest.fixture
def suites() -> Iterator[None]:
    yield
    SUITES.pop("short", None)


@pytest.mark.parametrize(
    ("suite", "kills"), [pytest.param("pgd", (1, 3), marks=pytest.mark.slow), ("short", (2, 5, 3, 9))]
)
def test_a_killed_evaluation_resumes_with_the_same_records(
    suite: str, kills: tuple[int, ...], tmp_path: Path, suites
) -> None:
    state = tmp_path / "state"
    context = multiprocessing.get_context("fork")
    sizes = [0]
    for writes in kills:
        process = context.Process(target=evaluate_until, args=(state, suite, writes))
        process.start()
        process.join(600)
        assert process.exitcode == -signal.SIGKILL
        sizes.append(sum(1 for path in state.glob("part-*.npz") if "autoattack" not in path.name))
    # Finished parts are not lost.
    assert sizes == sorted(sizes)
    assert sizes[-1] > 0
    resumed = evaluate(trained(), made_up(), state=state, **settings(suite))
    whole = evaluate(trained(), made_up(), **settings(suite))
    for name in EXACT:
        assert np.array_equal(getattr(resumed, name), getattr(whole, name)), name
    for name in NEAR:
        if suite == "pgd":
            assert np.array_equal(getattr(resumed, name), getattr(whole, name)), name
        np.testing.assert_allclose(getattr(resumed, name), getattr(whole, name), atol=1e-3, err_msg=name)
    assert resumed.conditions == whole.conditions


def interrupt_evaluation(state: Path) -> None:
    class StoppedError(Exception):
        pass

    save, done = EvaluationState.save_part, []

    def stopping(self: EvaluationState, number: int, arrays: dict[str, Any]) -> None:
        save(self, number, arrays)
        done.append(number)
        if len(done) == 2:
            raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EvaluationState, "save_part", stopping)
        with pytest.raises(StoppedError):
            evaluate(trained(), made_up(), state=state, **settings("pgd-20"))


def other_weights() -> torch.nn.Module:
    network = trained()
    with torch.no_grad():
        network[4].bias[0] += 1e-3
    return network


@pytest.mark.parametrize(
    ("changed", "changed_names"),
    [
        ({"model": other_weights()}, "weights"),
        ({"dataset": made_up(seed=5)}, "images"),
        ({"seed": 1}, "images, seed"),
        ({"num_images": 79}, "images, pictures"),
        ({"threat": type(THREAT)(norm="linf", eps=0.2)}, "threat, suite, radii"),
        ({"suite": "pgd"}, "suite"),
        ({"precision": "fast"}, "precision"),
        ({"eps_curve": False}, "radii"),
        ({"pictures": False}, "pictures"),
    ],
)
def test_resuming_under_other_conditions_is_refused(
    changed: dict[str, Any], changed_names: str, tmp_path: Path
) -> None:
    interrupt_evaluation(tmp_path / "state")
    before = sorted((tmp_path / "state").iterdir())
    arguments = {"model": trained(), "dataset": made_up(), **settings("pgd-20"), **changed}
    with pytest.raises(
        RunError, match=f"unfinished evaluation with other {changed_names}: .* delete that folder"
    ) as caught:
        evaluate(arguments.pop("model"), arguments.pop("dataset"), state=tmp_path / "state", **arguments)
    assert "\n" not in str(caught.value)
    assert sorted((tmp_path / "state").iterdir()) == before


def test_the_masking_check_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {**settings("pgd-20"), "masking": True}
    first = evaluate(trained(), made_up(), state=tmp_path / "state", **arguments)
    monkeypatch.setattr("robustill.evaluation.evaluate.masking_ladder", None)
    again = evaluate(trained(), made_up(), state=tmp_path / "state", **arguments)
    assert again.conditions == first.conditions


@pytest.mark.slow
def test_resuming_with_another_batch_size_gives_the_same_records(tmp_path: Path) -> None:
    interrupt_evaluation(tmp_path / "state")
    records = evaluate(trained(), made_up(), state=tmp_path / "state", **{**settings("pgd-20"), "batch_size": 64})
    whole = evaluate(trained(), made_up(), **settings("pgd-20"))
    for name in EXACT:
        assert np.array_equal(getattr(records, name), getattr(whole, name)), name


def test_a_damaged_part_is_repeated_a_damaged_header_refused(tmp_path: Path) -> None:
    interrupt_evaluation(tmp_path / "state")
    part = tmp_path / "state" / "part-00001.npz"
    part.write_bytes(part.read_bytes()[:300])
    records = evaluate(trained(), made_up(), state=tmp_path / "state", **settings("pgd-20"))
    whole = evaluate(trained(), made_up(), **settings("pgd-20"))
    assert np.array_equal(records.adversarial_probabilities, whole.adversarial_probabilities)
    (tmp_path / "state" / "header.json").write_text("{")
    with pytest.raises(RunError, match=r"header.json is damaged .*: delete the folder"):
        evaluate(trained(), made_up(), state=tmp_path / "state", **settings("pgd-20"))


MODULE = """
from helpers.evaluation_cases import trained
def ready(num_classes, in_channels, image_size):
    return trained()
"""


@pytest.fixture
def room(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        data = made_up()
        np.savez(tmp_path / f"{split}.npz", images=data.images.numpy(), labels=data.labels.numpy())
    (tmp_path / "somebodys_networks.py").write_text(MODULE)
    return tmp_path


WORDS = "evaluate --model somebodys_networks:ready --data . --threat linf:0.1 --suite apgd-ce,square --num-images 70"


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def only(room: Path, out: str) -> tuple[Path, Records]:
    (folder,) = (room / out).iterdir()
    return folder, Records.load(folder)


@pytest.mark.slow
def test_two_torchrun_processes_give_the_records_of_one(room: Path) -> None:
    one = [sys.executable, "-m", "robustill", *WORDS.split(), "--out", "one"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = [*launcher, "-m", "robustill", *WORDS.split(), "--out", "two"]
    shown = []
    for command in (one, two):
        done = subprocess.run(
            command, cwd=room, env=environment(), capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr
        # These processes have the real day, and may be of two.
        shown.append(re.sub(r"\d{4}-\d\d-\d\d", "DAY", done.stdout))
    # One table: only the first process prints.
    assert shown[0].replace("one/", "two/") == shown[1]
    (_, first), (folder, second) = only(room, "one"), only(room, "two")
    for name in EXACT:
        assert np.array_equal(getattr(first, name), getattr(second, name)), name
    np.testing.assert_allclose(first.margin, second.margin, atol=1e-3)
    assert {**first.conditions, "date": "DAY"} == {**second.conditions, "date": "DAY"}
    assert sorted(path.name for path in folder.iterdir()) == ["records.npz", "summary.json"]


def one_of_two(rank: int, room: Path) -> None:
    """Evaluate as one of two processes of a group."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(room / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    records = evaluate(trained(), made_up(), **settings("pgd-20"), state=room / "state")
    save_records(records, room / f"records-{rank}")
    torch.distributed.destroy_process_group()


def test_every_process_of_a_group_returns_all_records(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    process_group = [context.Process(target=one_of_two, args=(rank, tmp_path)) for rank in (0, 1)]
    for process in process_group:
        process.start()
    for process in process_group:
        process.join(600)
        assert process.exitcode == 0
    whole = evaluate(trained(), made_up(), **settings("pgd-20"))
    for rank in (0, 1):
        records = Records.load(tmp_path / f"records-{rank}")
        for name in (*EXACT, *NEAR):
            assert np.array_equal(getattr(records, name), getattr(whole, name)), name
        assert records.conditions == whole.conditions
    # The parts of both are in one folder, so that either process can resume.
    assert len(list((tmp_path / "state").glob("part-*.npz"))) == 7


class Changed(torch.nn.Module):
    """The trained network in other code: its weights have the same names and values."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.network, self.change = trained(), change

    def forward(self, x: torch.Tensor) -> Any:
        return self.network(self.change(x))


def rounded(x: torch.Tensor) -> torch.Tensor:
    return (x * 20).round() / 20


def straight_through(x: torch.Tensor) -> torch.Tensor:
    return x + (rounded(x) - x).detach()


def evaluate_changed(change: Any, state: Path) -> Records:
    records: Records = evaluate(Changed(change), made_up(), state=state, **settings("pgd-20"))
    return records


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        (torch.clone, lambda x: (x - 0.4) / 0.3, "logits"),
        (torch.clone, lambda x: x.flip(2), "logits"),
        (rounded, straight_through, "input gradients"),
    ],
)
def test_resuming_the_same_weights_in_other_code_is_refused(before: Any, after: Any, what: str, tmp_path: Path) -> None:
    evaluate_changed(before, tmp_path / "state")
    files = sorted((tmp_path / "state").iterdir())
    message = rf"another network \(its {what} on fixed images differ .*: restore its code .* or delete that folder"
    with pytest.raises(RunError, match=message) as caught:
        evaluate_changed(after, tmp_path / "state")
    assert "\n" not in str(caught.value)
    assert sorted((tmp_path / "state").iterdir()) == files


@pytest.mark.slow
def test_a_state_of_earlier_versions_has_no_fingerprint_and_is_resumed(tmp_path: Path) -> None:
    interrupt_evaluation(tmp_path / "state")
    header = tmp_path / "state" / "header.json"
    page = json.loads(header.read_text())
    kept = {key: value for key, value in page.items() if key not in ("fingerprint", "sha256", "format")}
    assert "fingerprint" in page
    header.write_text(json.dumps(with_checksum(kept)))
    records = evaluate(trained(), made_up(), state=tmp_path / "state", **settings("pgd-20"))
    whole = evaluate(trained(), made_up(), **settings("pgd-20"))
    assert np.array_equal(records.adversarial_probabilities, whole.adversarial_probabilities)


@pytest.mark.slow
def test_parts_of_earlier_versions_are_completed_by_the_fixed_attack(tmp_path: Path) -> None:
    interrupt_evaluation(tmp_path / "state")
    parts = sorted((tmp_path / "state").glob("part-*.npz"))
    assert len(parts) == 2
    before = {}
    for part in parts:
        before[part] = dict(np.load(part))
        del before[part]["pgd_probabilities"]
        np.savez(part, **before[part])
    records = evaluate(trained(), made_up(), state=tmp_path / "state", **settings("pgd-20"))
    whole = evaluate(trained(), made_up(), **settings("pgd-20"))
    for name in (*EXACT, *NEAR):
        assert np.array_equal(getattr(records, name), getattr(whole, name)), name
    # They are kept, and the passes of the attack are counted.
    for part in parts:
        after = dict(np.load(part))
        assert after["passes"] == before[part]["passes"] + 21 * 13
        assert all(np.array_equal(after[name], before[part][name]) for name in before[part].keys() - {"passes"})


def test_finished_records_of_earlier_versions_are_not_attacked_again() -> None:
    arguments = {**settings("pgd-20"), "conditions": {"checkpoint_sha256": "ab"}}
    first = evaluate(trained(), made_up(), **arguments)
    conditions = {key: value for key, value in first.conditions.items() if key != "calibration_attack"}
    old = replace(first, pgd_probabilities=None, conditions=conditions)
    assert evaluate(trained(), made_up(), before=old, **arguments) is old


def test_a_randomised_network_is_resumed_with_a_warning(tmp_path: Path) -> None:
    def random(x: torch.Tensor) -> torch.Tensor:
        return x + 0.1 * torch.randn_like(x)

    evaluate_changed(random, tmp_path / "state")
    with pytest.warns(UserWarning, match="is resumed, but the network draws random numbers: only its weights were"):
        evaluate_changed(random, tmp_path / "state")
    with pytest.raises(RunError, match="only one of the two draws random numbers"):
        evaluate_changed(torch.clone, tmp_path / "state")


def test_finished_records_of_a_randomised_network_are_returned() -> None:
    arguments = {**settings("pgd-20"), "num_images": 9, "conditions": {"checkpoint_sha256": "ab"}}
    network = Changed(lambda x: x + 0.1 * torch.randn_like(x))
    first = evaluate(network, made_up(), **arguments)
    assert evaluate(network, made_up(), before=first, **arguments) is first
    network.change = torch.clone
    assert evaluate(network, made_up(), before=first, **arguments) is not first


def test_a_folder_that_cannot_be_written_to_is_reported_before_the_attack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("robustill.evaluation.state.write_text", refuses)
    monkeypatch.setattr("robustill.evaluation.evaluate.WorstCase", None)
    with pytest.raises(
        RunError, match=r"state cannot be written to \(Read-only file system\): .* nothing was attacked"
    ):
        evaluate(trained(), made_up(), state=tmp_path / "state", **settings("pgd-20"))


@pytest.mark.slow
def test_records_are_not_repeated_for_a_mended_gradient() -> None:
    conditions = {"checkpoint_sha256": "ab"}
    arguments = {**settings("pgd-20"), "conditions": conditions}
    network = Changed(rounded)
    first = evaluate(network, made_up(), **arguments)
    assert evaluate(network, made_up(), before=first, **arguments) is first
    network.change = straight_through
    again = evaluate(network, made_up(), before=first, **arguments)
    assert np.array_equal(again.clean_probabilities, first.clean_probabilities)
    assert again.robust.mean() < first.robust.mean()


def test_a_masking_check_of_a_surrogate_in_other_code_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    surrogate, checks = Changed(torch.clone), []
    arguments = {**settings("pgd-20"), "masking": True, "surrogate": surrogate, "num_images": 30}
    arguments["conditions"] = {"checkpoint_sha256": "ab"}

    def counted(*given: Any, **named: Any) -> dict[str, Any]:
        checks.append(named["surrogate"])
        return {"verdict": "no sign of it", "reasons": [], "images": len(checks)}

    monkeypatch.setattr("robustill.evaluation.evaluate.masking_ladder", counted)
    first = evaluate(trained(), made_up(), state=tmp_path / "state", **arguments)
    for before in (None, first):
        evaluate(trained(), made_up(), state=tmp_path / "state", before=before, **arguments)
    assert len(checks) == 1
    surrogate.change = lambda x: x.flip(3)
    again = evaluate(trained(), made_up(), state=tmp_path / "state", before=first, **arguments)
    assert [first.conditions["masking"]["images"], again.conditions["masking"]["images"]] == [1, 2]


def test_a_surrogate_of_other_classes_is_refused() -> None:
    surrogate = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 7))
    with pytest.raises(ModelError, match="the surrogate gives 7 logits, but the data has 3 classes"):
        evaluate(trained(), made_up(), **{**settings("pgd-20"), "masking": True}, surrogate=surrogate)
