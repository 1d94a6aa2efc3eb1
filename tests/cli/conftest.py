"""Fixtures of the tests of the command line."""

from __future__ import annotations

import pickle
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from helpers.command_line import Call
from helpers.small_runs import small_values
from robustill.cli import app as cli


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`robustill` with these words: exit code, what it printed, what it printed on stderr."""
    # Given back after the test: main() replaces it for its process.
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def called(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["robustill", *words])
        code = 0
        try:
            cli.main()
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 0
        out, err = capsys.readouterr()
        return code, out, err

    return called


def npz(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    np.savez(path, images=images, labels=labels)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with configurations, a run, a file of weights, and data that is right and wrong."""
    workspace = tmp_path_factory.mktemp("workspace")
    draws = np.random.default_rng(0)
    colour, labels = draws.random((40, 3, 8, 8)), np.arange(40) % 4
    npz(workspace / "four" / "train.npz", colour, labels)
    npz(workspace / "four" / "test.npz", colour, labels)
    npz(workspace / "bright" / "train.npz", colour * 255, labels)
    beyond = np.where(colour > 0.99, np.float32(1.0000001), colour.astype(np.float32))
    beyond[0, 0, 0, 0] = 0
    npz(workspace / "beyond" / "train.npz", beyond, labels)
    (workspace / "net.onnx").write_bytes(b"noise" * 100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(torch.nn.Flatten()), workspace / "script.pt")
    npz(workspace / "cut" / "train.npz", colour, labels)
    cut = workspace / "cut" / "train.npz"
    cut.write_bytes(cut.read_bytes()[:500])
    (workspace / "full").mkdir()
    (workspace / "full" / "thesis.tex").write_text("years of work")
    (workspace / "a.yaml").write_text(yaml.safe_dump(small_values()))
    (workspace / "list.yaml").write_text("- a\n- b\n")
    (workspace / "broken.yaml").write_text("a: [")
    (workspace / "laughs.yaml").write_text("a: &a [x]\nb: [*a, *a]\n")
    (workspace / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (workspace / "typo.yaml").write_text("optim: {epoch: 3}\n")
    (workspace / "twice.yaml").write_text("seed: 1\nseed: 2\n")
    (workspace / "folder.yaml").mkdir()
    (workspace / "noise.pt").write_bytes(b"noise" * 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        patch.setattr(sys, "argv", ["robustill", "train", "a.yaml", "--run", "run"])
        with pytest.raises(SystemExit):
            cli.main()
    (workspace / "weights.safetensors").write_bytes(
        (workspace / "run" / "checkpoints" / "epoch-0002" / "model.safetensors").read_bytes()
    )
    torch.save({"w": workspace}, workspace / "payload.pt")
    (workspace / "plain.pt").write_bytes(pickle.dumps({"w": workspace}))
    (workspace / "half.safetensors").write_bytes((workspace / "weights.safetensors").read_bytes()[:3000])
    torch.save(load_file(workspace / "weights.safetensors"), workspace / "half.pt")
    (workspace / "half.pt").write_bytes((workspace / "half.pt").read_bytes()[:3000])
    shutil.copytree(workspace / "run", workspace / "half")
    for weights_file in (workspace / "half" / "checkpoints").glob("*/model.safetensors"):
        weights_file.write_bytes(weights_file.read_bytes()[:3000])
    digits = np.zeros((40, 8, 8, 1), dtype=np.uint8)
    np.savez_compressed(workspace / "packed.npz", image=digits, label=labels)
    np.savez(workspace / "payload.npz", image=digits, label=np.array([workspace] * 40, dtype=object))
    return workspace
