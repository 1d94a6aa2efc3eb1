"""`robustill evaluate` on a run and on a file of weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from helpers.command_line import Call


def test_a_file_of_weights_is_evaluated(
    workspace: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").write_bytes((workspace / "weights.safetensors").read_bytes())
    assert load_file(tmp_path / "w.safetensors")
    more = ["--num-images", "20", "--suite", "pgd-20", "--no-eps-curve"]
    named = ["--model", "resnet8", "--model.width", "2", "--data", "digits", "--threat", "linf:0.1"]
    code, out, _ = call("evaluate", "w.safetensors", *more, *named)
    assert code == 0
    assert "20 images, a subset of 500; linf:0.1; suite pgd-20" in out
    assert (tmp_path / "evaluations" / "test-w-pgd-20-20-images-linf-0.1" / "summary.json").exists()


def test_the_first_images_have_a_folder_of_their_own(
    workspace: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").write_bytes((workspace / "weights.safetensors").read_bytes())
    named = ["--model", "resnet8", "--model.width", "2", "--data", "digits", "--threat", "linf:0.1"]
    words = ["evaluate", "w.safetensors", "--suite", "pgd-20", "--no-eps-curve", *named]
    code, out, _ = call(*words, "--first", "12")
    assert code == 0
    assert "digits test: the first 12 images, a subset of 500; linf:0.1; suite pgd-20" in out
    assert call(*words, "--num-images", "12")[0] == 0
    folders = [path.name for path in (tmp_path / "evaluations").iterdir()]
    assert sorted(folders) == [f"test-w-pgd-20-{subset}-linf-0.1" for subset in ("12-images", "first-12-images")]
    code, _, err = call(*words, "--num-images", "12", "--first", "12")
    assert (code, err.count("\n")) == (2, 1)
