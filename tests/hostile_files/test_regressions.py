"""Files on which readers failed before: each is refused in one line."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hostile_files.readers import (
    DIGITS,
    LABELS,
    NETWORK,
    READERS,
    npz,
    progress,
    torch_file,
    unsealed_transfer,
    written,
)
from robustill.analysis.runs import read_run
from robustill.core.errors import RobustillError


def archive(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return buffer.getvalue()


def holding_itself() -> bytes:
    value: list[Any] = []
    value.append(value)
    return torch_file(value)


def page(**changes: Any) -> Callable[[], bytes]:
    """Of the hub, or a run's model.json."""
    return lambda: json.dumps({**NETWORK, **changes, "format": 1}).encode()


def header(**changes: Any) -> Callable[[], bytes]:
    return lambda: json.dumps({"conditions": {"seed": 0}, "part_size": 5, "format": 1, **changes}).encode()


def part(**changes: Any) -> bytes:
    with np.load(io.BytesIO(progress())) as arrays:
        return npz(**{**arrays, **changes})


def samples(**changes: Any) -> Callable[[], bytes]:
    return lambda: npz(**{"ids": np.arange(6), "labels": LABELS, "flipped": np.zeros(6, np.bool_), **changes})


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


REFUSED: list[tuple[str, Callable[[], bytes], str]] = [
    ("idx", lambda: bytes([0, 0, 8, 3]) + struct.pack(">3I", 0, 2**32 - 1, 2**32 - 1), "array is too big"),
    ("npz", lambda: archive(**{"a\nb.npy": b""}), r"found a\\nb"),
    ("npz", lambda: npz(images=DIGITS, labels=LABELS * 10**9), "found labels up to 2000000000"),
    ("extra", lambda: archive(**{"a\nb.npy": b""}), r"found a\\nb"),
    ("pt", holding_itself, "holds a list; expected tensors by name"),
    ("pt", lambda: torch_file({"a\nb": 1}), r"holds a\\nb where tensors"),
    ("pt", lambda: torch_file({"\x1b[2J": 1}), r"holds \\x1b\[2J where tensors"),
    ("hub", page(name=["resnet8"]), "the name is not a string"),
    ("hub", page(options={"width": 10**7}), "more weights than its file"),
    ("hub", page(options={"width": 300}), "more weights than its file"),
    ("run model.json", page(options="ab"), "model.json is damaged: .*options"),
    ("run model.json", page(image_size=[8]), "model.json is damaged: the sizes"),
    ("run model.json", page(num_classes=10**12), "more weights than its file"),
    ("network config.yaml", lambda: b"seed: 0\n", "does not describe a training: 'method'"),
    ("header", header(part_size=float("inf")), "damaged"),
    ("header", header(format=[[1]]), "format a list, expected 1"),
    ("transfer.json", lambda: unsealed_transfer().replace(b'"format": 1', b'"format": {}'), "format a dict"),
    ("part", lambda: part(margin=np.array(["x", "y"])), "margin is <U1"),
    ("run metrics.jsonl", lambda: b'{"epoch": 1, "validation_robust_accuracy": null}\n', "damaged in line 1"),
    ("run metrics.json", lambda: b"2", "no list of lines"),
    ("run metrics.json", lambda: b"[1, 2]", "no list of lines"),
    ("run state.pt", lambda: torch_file({"epoch": torch.ones(2)}), "of another epoch"),
    ("run state.pt", lambda: torch_file({"epoch": 1, "has_ema": torch.ones(2)}), "of another epoch"),
    ("run dynamics/samples.npz", samples(ids=np.array(6)), "ids, labels, flipped is not one value a sample"),
    ("run dynamics/samples.npz", samples(flipped=LABELS), "flipped is not one value a sample"),
    ("config", lambda: b"seed: 0x" + b"f" * 5000, "more than 64 bits"),
    ("cache.json", lambda: nested(100_000), "holds the logits of other teachers"),
    ("scores", lambda: b"id,label,flipped,loss\n1,0,1,1.0\n", "every label is flipped"),
    ("scores", lambda: b"id,label,loss\ninf,0,1.0\n", "whole numbers from 0"),
]


@pytest.mark.parametrize(("name", "content", "says"), REFUSED)
def test_the_file_is_refused_in_one_line(name: str, content: Callable[[], bytes], says: str, tmp_path: Path) -> None:
    READERS[name].laid_out(tmp_path, content())
    with pytest.raises(RobustillError, match=says) as caught:
        READERS[name].read(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_report_leaves_out_values_of_other_types(tmp_path: Path) -> None:
    READERS["run config.yaml"].laid_out(tmp_path, b"teachers: 3\nthreat: {norm: linf, eps: " + b"9" * 19 + b"}\n")
    lines = [json.loads(line) for line in written("metrics.jsonl")().splitlines()]
    for line in lines:
        del line["check"]
    lines[0]["large"] = 10**400
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = read_run(tmp_path, "run")
    assert run.teachers == []
    assert list(run.metrics[0]) == ["epoch", "validation_robust_accuracy"]


def test_a_forged_length_allocates_no_memory(tmp_path: Path) -> None:
    READERS["pt"].laid_out(tmp_path, b"\x80\x02X" + struct.pack("<I", 1 << 30) + b"short")
    tracemalloc.start()
    try:
        with pytest.raises(RobustillError, match="damaged"):
            READERS["pt"].read(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
