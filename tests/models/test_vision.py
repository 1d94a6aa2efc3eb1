"""The helper that imports torchvision's dependants where its operators are missing, with packages made for the test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from robustill.core.errors import ModelError
from robustill.models.hub import _declared, import_vision


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]
    _declared.clear()


def test_missing_operators_are_declared_and_the_import_repeated(packages: Path) -> None:
    (packages / "torchvision.py").write_text(
        "import torch\n"
        "half = True\n"
        "if not hasattr(torch.ops.torchvision, 'nms'):\n"
        "    raise RuntimeError('operator torchvision::nms does not exist')\n"
        "half = False\n"
    )
    (packages / "needs_vision.py").write_text("import torchvision\nassert not torchvision.half\n")
    assert import_vision("needs_vision").__name__ == "needs_vision"
    assert hasattr(torch.ops.torchvision, "qnms")


def test_other_failures_are_one_line(packages: Path) -> None:
    (packages / "broken_vision.py").write_text("raise RuntimeError('no\\nluck')\n")
    with pytest.raises(ModelError, match=r"^broken_vision fails at import: no$"):
        import_vision("broken_vision")
    with pytest.raises(ModelError, match=r"pip install 'robustill\[vision\]'"):
        import_vision("missing_vision")
