"""The benchmark for a GPU: that all of it runs, with torch and numpy alone, and that its watch sees what it is for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[2] / "benchmarks" / "speed"


@pytest.fixture
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.slow
def test_it_runs_to_its_end_in_miniature_with_torch_and_numpy_alone(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    program = f"""
import runpy, sys
absent = "pydantic cyclopts rich safetensors sklearn scipy PIL matplotlib jinja2 torchvision timm pyautoattack"
for name in absent.split():
    sys.modules[name] = None
sys.argv = ["gpu.py", "--miniature", "--minutes", "60", "--out", {str(out)!r}]
sys.path.insert(0, {str(BENCHMARKS)!r})
runpy.run_path({str(BENCHMARKS / "gpu.py")!r}, run_name="__main__")
"""
    # One thread: several wait for each other where the machine has other work.
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=3600, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "its figures say nothing" in done.stdout
    found = json.loads(out.read_text())
    assert found["miniature"] is True
    assert found["images"].startswith("synthetic")
    # Nothing else may fail: what fails is no error of the program, but is named here.
    assert set(found["left_out"]) == {"cuda graphs", "tf32", "authors"}
    assert "pyautoattack" in found["left_out"]["authors"]
    assert set(found["peaks"]) == {"product", "convolution"}
    for cell in ("resnet8 at", "resnet8 akd", "wideresnet at", "wideresnet akd"):
        assert found[cell]["attack_on_light_copy"] is True
        assert found["host_waits_for"][cell] == {}
        assert found[cell]["eager"]["images_per_second"] > 0
        # The same step, compiled, has the same loss but for what bfloat16 rounds.
        assert found[f"{cell} compiled"]["loss"] == pytest.approx(found[cell]["loss"], abs=0.05)
    assert set(found["training"]) == {"bf16", "bf16, another seed", "fp32"}
    assert set(found["autoattack"]) == {"exact", "fast"}


@pytest.mark.usefixtures("_importable")
def test_operations_that_wait_are_counted_and_those_of_one_hot_are_not() -> None:
    from gpu_steps import synchronisations

    labels = torch.arange(3)
    cpu = torch.device("cpu")
    assert synchronisations(lambda: nn.functional.one_hot(labels, 3).float().softmax(dim=1), cpu) == {}
    assert synchronisations(lambda: [labels.sum().item() for _ in range(2)], cpu) == {"aten::_local_scalar_dense": 2}


@pytest.mark.usefixtures("_importable")
def test_a_steps_operations_are_those_of_the_formula() -> None:
    from gpu_steps import step_flops

    # Convolutions of 5×5, 3 -> 6 on 32×32 and 6 -> 16 on 16×16, each pooled by two; then 16·8·8 -> 120 -> 84 -> 10.
    forward = 2 * (32 * 32 * 6 * 75 + 16 * 16 * 16 * 150 + 1024 * 120 + 120 * 84 + 84 * 10)
    assert step_flops("lenet", {}, "at", steps=10) == 23 * forward
    assert step_flops("lenet", {}, "akd", steps=10) == 24 * forward


@pytest.mark.usefixtures("_importable")
def test_a_part_that_fails_or_comes_too_late_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    from gpu import Report

    out = tmp_path / "figures.json"
    content = {"part_seconds": {}, "left_out": {}}
    report = Report(out, content, minutes=60)

    def fails() -> None:
        raise RuntimeError("no such kernel\nand more")

    report.attempt(content, "first", lambda: {"seconds": 1}, needs=0)
    assert json.loads(out.read_text())["first"] == {"seconds": 1}
    report.attempt(content, "second", fails, needs=0)
    report.attempt(content, "third", fails, needs=6000)
    found = json.loads(out.read_text())
    assert found["first"] == {"seconds": 1}
    assert found["left_out"]["second"] == "RuntimeError: no such kernel"
    assert content["left_out"]["third"].endswith("it may take 6000 s")


@pytest.mark.usefixtures("_importable")
def test_an_autoattack_that_is_cut_off_keeps_the_stages_it_has_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_accuracy import OutOfTimeError, autoattacks, images_of

    monkeypatch.setattr("robustill.attacks.autoattack._PROGRESS_INTERVAL", 0)
    dataset, _ = images_of(None, small=True)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    with torch.no_grad():
        # The first image is called what it is, whatever becomes of it, and so every stage has work.
        model[1].weight.mul_(1e-4)
        model[1].bias.copy_(torch.eye(10)[0])
    settings = {"images": 6, "batch": 6, "steps": 3, "queries": 10, "targets": 2}

    def attacked(looks: int) -> dict[str, object]:
        left = iter([1.0] * looks)
        return autoattacks(model, dataset, settings, torch.device("cpu"), lambda: next(left, -1.0))["exact"]()

    with pytest.raises(OutOfTimeError):
        attacked(0)
    whole, found = attacked(10**4), {}
    for looks in range(1, 200):
        try:
            found = attacked(looks)
        except OutOfTimeError:
            continue
        break
    assert "passes done" in found["cut_off"]
    assert whole["robust"] == found["robust_at_most"] == 1
    assert len(found["stage_seconds"]) == len(whole["stages"])
