"""The other networks that a file is attacked with: the one that it names, if it is here, and those that are given."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from safetensors.torch import save_file

from helpers.evaluation_cases import K, made_up, trained
from helpers.onnx_files import onnx_file
from robustill.core.errors import CheckpointError, ModelError
from robustill.evaluation.surrogates import agreement_warnings, load_surrogates
from robustill.models import build
from robustill.models.export import export_network
from robustill.models.loading import LoadedNetwork, Shape, load_network
from robustill.models.onnx import set_metadata
from robustill.models.onnx_file import load_onnx

SHAPE = Shape(num_classes=K, in_channels=1, image_size=(6, 6))


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an ONNX file and two folders of networks, one of them also under another name."""
    monkeypatch.chdir(tmp_path)
    onnx_file(tmp_path / "net.onnx", trained().eval())
    for seed, name in ((0, "float32"), (1, "teacher")):
        network = build("resnet8", num_classes=K, in_channels=1, image_size=6, seed=seed, width=2)
        save_file(network.state_dict(), tmp_path / f"{name}.safetensors")
        export_network(f"{name}.safetensors", Path(name), shape=SHAPE, name="resnet8", options={"width": 2})
    export_network("hf:teacher", Path("elsewhere", "teacher"))
    return tmp_path


def told(room: Path, facts: dict[str, object]) -> LoadedNetwork:
    """The file with facts about its origin."""
    (room / "told.onnx").write_bytes(set_metadata((room / "net.onnx").read_bytes(), "", facts))
    return load_onnx(room / "told.onnx", SHAPE)


def test_the_network_that_a_file_names_comes_first_if_it_is_here_and_the_same(room: Path) -> None:
    sha256 = load_network("hf:float32").sha256
    for facts, expected in (
        ({"source": "hf:float32", "source_sha256": sha256}, ["hf:float32", "hf:teacher"]),
        ({"source": "hf:float32", "source_sha256": "0" * 64}, ["hf:teacher"]),
        ({"source": f"hf:{room / 'float32'}", "source_sha256": sha256}, ["hf:teacher"]),
        ({"source": f"hf:../{room.name}/float32", "source_sha256": sha256}, ["hf:teacher"]),
        ({"source": "os:system", "source_sha256": sha256}, ["hf:teacher"]),
        ({"source": "hf:someone/float32", "source_sha256": sha256}, ["hf:teacher"]),
        ({"source": ["hf:float32"], "source_sha256": sha256}, ["hf:teacher"]),
        ({}, ["hf:teacher"]),
    ):
        assert list(load_surrogates(told(room, facts), "hf:teacher", SHAPE)) == expected, facts


def test_each_network_is_taken_once_under_a_name_of_its_own(room: Path) -> None:
    network = load_onnx(room / "net.onnx", SHAPE)
    found = load_surrogates(network, "hf:float32, hf:teacher,hf:elsewhere/teacher", SHAPE)
    assert [(name, each.spec) for name, each in found.items()] == [
        ("hf:float32", "hf:float32"),
        ("hf:teacher", "hf:teacher"),
    ]
    save_file(
        build("resnet8", num_classes=K, in_channels=1, image_size=6, seed=2, width=2).state_dict(), "o.safetensors"
    )
    export_network("o.safetensors", Path("other", "teacher"), shape=SHAPE, name="resnet8", options={"width": 2})
    assert list(load_surrogates(network, "hf:teacher,hf:other/teacher", SHAPE)) == ["hf:teacher", "hf:other/teacher"]
    assert load_surrogates(network, None, SHAPE) == {}


def test_networks_that_cannot_be_loaded_are_one_line(room: Path) -> None:
    network = load_onnx(room / "net.onnx", SHAPE)
    with pytest.raises(ModelError, match=r"--surrogate float32\.safetensors holds weights only"):
        load_surrogates(network, "hf:float32,float32.safetensors", SHAPE)
    with pytest.raises(CheckpointError, match="nowhere"):
        load_surrogates(network, "nowhere", SHAPE)


def test_a_network_with_other_predictions_is_said(room: Path) -> None:
    network, data = load_onnx(room / "net.onnx", SHAPE), made_up()
    (line,) = agreement_warnings(network, load_network("hf:float32"), data)
    assert re.match(r"hf:float32 predicts as the file does on 0\.[0-6]\d\d of 64 images only", line)
    assert agreement_warnings(network, network, data) == []
