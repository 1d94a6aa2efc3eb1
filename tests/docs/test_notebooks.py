"""The notebooks of examples/ run from start to end, in miniature."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

from helpers.pages import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
# What takes long, and what takes its place.
SHORTER = {
    '["--optim.epochs", "30"]': '["--optim.epochs", "2", "--data.train_size", "40", "--data.validation", "50"]',
    "example.x[:100], example.y[:100]": "example.x[:20], example.y[:20]",
    "x[:20], y[:20]": "x[:2], y[:2]",
    'suite="pgd-20"': 'suite="pgd-20", num_images=20',
}


def cells(notebook: Path) -> list[dict[str, Any]]:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[notebook.stem for notebook in NOTEBOOKS])
@pytest.mark.filterwarnings("ignore")
def test_a_notebook_runs_from_start_to_end(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    mpl.use("agg")
    names: dict[str, Any] = {"__name__": "notebook"}
    for cell in cells(notebook):
        source = "".join(cell["source"])
        for long, short in SHORTER.items():
            source = source.replace(long, short)
        file = re.match(r"%%writefile (\S+)\n", source)
        if file:
            Path(file[1]).write_text(source[file.end() :], encoding="utf-8")
        else:
            exec(compile(source, notebook.name, "exec"), names)
    plt.close("all")
    for file in tmp_path.glob("*.py"):
        sys.modules.pop(file.stem, None)


def test_there_is_something_to_shorten() -> None:
    text = "".join("".join(cell["source"]) for notebook in NOTEBOOKS for cell in cells(notebook))
    assert all(long in text for long in SHORTER)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[notebook.stem for notebook in NOTEBOOKS])
def test_a_notebook_is_stored_with_its_outputs(notebook: Path) -> None:
    content = notebook.read_text(encoding="utf-8")
    assert len(content) < 200_000
    assert not re.search(r"/(home|root|tmp|work|Users)/", content)
    assert [cell["execution_count"] for cell in cells(notebook)] == list(range(1, len(cells(notebook)) + 1))
    outputs = [output for cell in cells(notebook) for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output["output_type"] == "error" for output in outputs)
