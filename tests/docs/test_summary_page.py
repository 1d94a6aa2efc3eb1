"""The page about summary.json names every field that an evaluation writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

import robustill as rb
from helpers.pages import DOCS


@pytest.mark.filterwarnings("ignore")
def test_every_field_of_a_summary_is_described(tmp_path: Path) -> None:
    network = rb.build_model("resnet8", num_classes=10, in_channels=1, image_size=8, width=2)
    weights = tmp_path / "weights.safetensors"
    save_file(network.state_dict(), weights)
    overrides = ["--model", "resnet8", "--model.width", "2", "--data", "digits", "--threat", "linf:0.1"]
    (folder,) = rb.evaluate_file(weights, out=tmp_path, overrides=overrides, suite="pgd-20", num_images=2)
    written = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    page = (DOCS / "how-to" / "read-a-summary.md").read_text(encoding="utf-8")
    fields = [*written, *written["results"], *written["conditions"]]
    assert len(fields) > 30
    assert [field for field in fields if f"`{field}`" not in page and f"## {field}" not in page] == []
