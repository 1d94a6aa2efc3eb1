"""What `import robustill` offers, and that the README's snippets run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import robustill as rb


@pytest.mark.parametrize("name", rb.__all__)
def test_every_public_name_is_there_and_is_what_its_type_says(name: str) -> None:
    found = getattr(rb, name)
    assert found is getattr(rb, name)
    assert callable(found) or name == "losses"


def test_the_table_of_places_and_the_public_names_agree() -> None:
    assert set(rb._PLACES) == set(rb.__all__)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        rb.trian  # noqa: B018


def test_the_core_imports_with_torch_and_numpy_alone() -> None:
    program = """
import sys
for name in ("pydantic", "cyclopts", "yaml", "rich", "safetensors", "sklearn", "scipy", "PIL", "matplotlib", "jinja2"):
    sys.modules[name] = None
import robustill as rb
rb.Threat, rb.pgd, rb.Step, rb.Ensemble, rb.build_method, rb.build_model, rb.losses, rb.Batch, rb.autoattack
import robustill.data, robustill.averaging, robustill.optim, robustill.runtime, robustill.heldout, robustill.atomic
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_method_in_your_own_loop_as_in_the_readme() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    snippet = next(block for block in blocks if "rb.build_method" in block)
    lines = snippet[snippet.index("threat = ") :]
    student, first, second = (rb.build_model("resnet8", num_classes=10, width=4, seed=seed) for seed in range(3))
    names = {
        "rb": rb,
        "model": student,
        "student": student,
        "first": first.eval(),
        "second": second.eval(),
        "x": torch.rand(4, 3, 16, 16),
        "y": torch.arange(4),
        "ids": torch.arange(4),
    }
    exec(lines, names)  # the README's own words
    assert torch.isfinite(names["outcome"].loss).all()
    assert all(p.grad is not None for p in student.parameters())
