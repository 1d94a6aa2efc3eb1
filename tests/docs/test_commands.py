"""The commands and the code of the pages run as they are written, in miniature.

Training lasts a few epochs of a tiny network on few images, and attacks see a handful; what is printed is not compared.
"""

from __future__ import annotations

import dataclasses
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.pages import DOCS, Block, blocks, commands
from helpers.same_process import same_process
from robustill.cli import app as cli
from robustill.data import DATASETS
from robustill.data.images import Dataset, Request
from robustill.data.splits import stratified_subset
from robustill.studies import scheduler

PAGES = [page for room in ("tutorials", "how-to") for page in sorted((DOCS / room).glob("*.md")) if commands(page)]
# With a study of three methods, and an export to ONNX.
SLOW = (
    "audit-a-network",
    "choose-a-teacher",
    "compare-methods",
    "ship-a-small-network",
    "ship-a-file",
    "own-images",
    "own-study",
)
TRAINING = {
    "--optim.epochs": "4",
    "--optim.batch_size": "20",
    "--data.train_size": "40",
    "--data.validation": "20",
    "--attack.steps": "1",
    "--validation.steps": "1",
}
# Suites that take minutes, and those that take their place.
SUITES = {"standard": "apgd-ce", "square": "pgd-20", "pgd": "pgd-20"}
IMAGES = 30
# Of forecasts, of the curve against eps and of the check of the gradient.
BUDGETS = {
    "robustill.training.cost._MAX_STEPS": 2,
    "robustill.studies.cost._TIMED_SECONDS": 0.0,
    "robustill.evaluation.evaluate.EPS_GRID": (1.0,),
    "robustill.evaluation.evaluate._NUM_MASKING_IMAGES": 12,
    "robustill.evaluation.masking._STEPS": (1, 5),
    "robustill.evaluation.masking._NUM_RESTARTS": 1,
    "robustill.evaluation.masking._NUM_NOISES": 5,
    "robustill.evaluation.masking._NUM_QUERIES": 20,
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few test images, studies in this process, and small budgets."""
    entry = DATASETS["digits"]

    def few(request: Request) -> Dataset:
        digits = entry.read(request)
        return digits if request.split == "train" else digits.subset(stratified_subset(digits.labels, IMAGES, seed=0))

    monkeypatch.setitem(DATASETS, "digits", dataclasses.replace(entry, read=few))
    monkeypatch.setattr(scheduler, "started_engine", same_process)
    for name, value in BUDGETS.items():
        monkeypatch.setattr(name, value)


def in_miniature(words: list[str]) -> list[str]:
    """Return a command of `robustill` that takes less time and is otherwise the same."""
    command, rest = words[0], words[1:]
    if command in ("train", "study"):
        rest = with_options(rest, TRAINING)
        if "--model" not in rest:
            rest = with_options(rest, {"--model.width": "2"})
    if command == "teachers" and rest[0] == "rank":
        few = {"--baselines": "1", "--baseline-epochs": "1", "--num-images": "100"}
        # The default of held-out images: there must be a hundred.
        small = {name: value for name, value in TRAINING.items() if name != "--data.validation"}
        return [command, *with_options(rest, {**few, **small, "--model.width": "2"})]
    if "--suite" in rest:
        suite = rest[rest.index("--suite") + 1]
        rest = with_options(rest, {"--suite": SUITES.get(suite, suite)})
    for option, value in (("--num-images", "20"), ("--seeds", "1")):
        if option in rest:
            rest = with_options(rest, {option: value})
    return [command, *rest]


def with_options(words: list[str], options: dict[str, str]) -> list[str]:
    """Return the words with these options, in the place of those of the same name."""
    changed = list(words)
    for name, value in options.items():
        if name in changed:
            changed[changed.index(name) + 1] = value
        else:
            changed += [name, value]
    return changed


def run_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if words[0] == "python":
        monkeypatch.setattr(sys, "argv", words[1:])
        runpy.run_path(words[1], run_name="__main__")
        return
    assert words[0] == "robustill", words
    monkeypatch.setattr(sys, "argv", ["robustill", *in_miniature(words[1:])])
    code: Any = 0
    try:
        cli.main()
    except SystemExit as ended:
        code = ended.code
    assert code in (0, None), sys.argv


def write_photos(folder: Path) -> None:
    """Write the images that the page about one's own images has, a folder for each class."""
    draws = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(60):
            pixels = draws.integers(100, size=(10, 12, 3)) + (100 if name == "cat" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")


def run_block(block: Block, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if block.title:
        Path(block.title).write_text(block.text, encoding="utf-8")
    elif block.language == "python":
        exec(compile(block.text, "page", "exec"), names)
    elif block.language == "sh":
        for words in block.commands():
            run_command(words, monkeypatch)


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in SLOW else []) for page in PAGES],
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("small")
def test_a_page_runs_from_start_to_end(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    # Given back after the test: main() replaces it for its process.
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    if page.stem == "own-images":
        write_photos(tmp_path / "photos")
    names: dict[str, Any] = {}
    for block in blocks(page):
        run_block(block, names, monkeypatch)
    for name in {block.title.removesuffix(".py") for block in blocks(page)}:
        sys.modules.pop(name, None)
    torch.set_num_threads(1)
