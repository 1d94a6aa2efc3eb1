"""ONNX models: another runtime gives the same logits, and the file contains no paths of its author."""

from __future__ import annotations

import logging
from pathlib import Path

import onnx
import onnx.reference
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from helpers.small_runs import small_config
from robustill.core.errors import ConfigError, ModelError
from robustill.evaluation.targets import evaluate_run
from robustill.models import build
from robustill.models import onnx as onnx_module
from robustill.models.export import Calibration, export_network
from robustill.models.loading import load_network
from robustill.models.onnx import exported_facts, onnx_logits, onnx_model
from robustill.training.loop import train

X = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def warmed_up(name: str, **options: object) -> nn.Module:
    """A network whose BatchNorm has statistics of images."""
    model = build(name, num_classes=10, seed=0, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), **options).train()
    with torch.no_grad():
        model(X)
    return model.eval()


def program(network: nn.Module) -> torch.export.ExportedProgram:
    return torch.export.export(network, (X[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


@pytest.mark.parametrize("name", ["resnet8", pytest.param("mobilenetv2", marks=pytest.mark.slow), "resnet_2b2"])
def test_onnxruntime_gives_the_same_logits(name: str) -> None:
    network = warmed_up(name)
    model = onnx_model(program(network), "")
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    for batch in (1, 2, 5):
        expected = network(X[:batch]).detach()
        torch.testing.assert_close(onnx_logits(model, X[:batch]), expected, atol=1e-4, rtol=1e-4)


def test_the_reference_implementation_gives_the_same_logits() -> None:
    network = warmed_up("resnet8", width=4)
    model = onnx.load_from_string(onnx_model(program(network), ""))
    (logits,) = onnx.reference.ReferenceEvaluator(model).run(None, {"images": X.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), network(X).detach(), atol=1e-4, rtol=1e-4)


def test_inputs_and_outputs_have_names_types_and_shapes() -> None:
    model = onnx.load_from_string(onnx_model(program(warmed_up("resnet8", width=4)), "a description"))
    (images,), (logits,) = model.graph.input, model.graph.output
    assert (images.name, logits.name) == ("images", "logits")
    types = [each.type.tensor_type for each in (images, logits)]
    shapes = [[dimension.dim_value or dimension.dim_param for dimension in each.shape.dim] for each in types]
    assert shapes == [["batch", 3, 32, 32], ["batch", 10]]
    assert images.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert model.doc_string == "a description"


def test_the_model_contains_no_paths_of_its_author() -> None:
    network = warmed_up("resnet8", width=4)
    content = onnx_model(program(network), "")
    for word in (str(Path(onnx_module.__file__).parents[1]), str(Path(__file__).parent), "site-packages", ".py"):
        assert word.encode() not in content
    weights = sum(numpy_helper.to_array(each).nbytes for each in onnx.load_from_string(content).graph.initializer)
    assert len(content) < weights + 20_000


def test_warnings_and_logging_are_left_unchanged(recwarn: pytest.WarningsRecorder) -> None:
    before = logging.root.manager.disable
    onnx_model(program(warmed_up("resnet8", width=4)), "")
    assert logging.root.manager.disable == before
    assert not recwarn.list


class SingularValues(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svdvals(x).flatten(1)


def test_an_operator_without_translation_is_refused() -> None:
    with pytest.raises(ModelError, match=r"cannot be translated to ONNX: .+") as caught:
        onnx_model(program(SingularValues()), "")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_packages_are_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustill.models.onnx.installed_version", lambda name: None if name == package else "1")
    with pytest.raises(ConfigError, match=rf"needs {package}: pip install 'robustill\[export\]'"):
        onnx_logits(onnx_model(program(warmed_up("resnet8", width=4)), ""), X)


@pytest.mark.slow
def test_an_exported_run_carries_its_model_card(tmp_path: Path) -> None:
    learned = {"model": {"width": 4}, "data": {"train_size": 400}, "method": {"name": "clean"}}
    train(small_config(**learned), tmp_path / "run", progress=False)
    evaluate_run(tmp_path / "run", checkpoints=["last"], suite="pgd-20", num_images=20, progress=False)
    returned = export_network(f"run:{tmp_path / 'run'}@last", tmp_path / "net.onnx")
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    content = (tmp_path / "net.onnx").read_bytes()
    expected = load_network(f"run:{tmp_path / 'run'}@last").module(images)
    assert torch.equal(returned.module(images), expected)
    torch.testing.assert_close(onnx_logits(content, images), expected.detach(), atol=1e-4, rtol=1e-4)
    card = onnx.load_from_string(content).doc_string
    assert "# net.onnx" in card
    assert "| 20 of 500 | linf:0.1 | pgd-20 |" in card
    assert "to 10 logits (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)" in card
    assert exported_facts(content)["classes"] == [str(digit) for digit in range(10)]
    assert "load_network" not in card
    calibration = Calibration(temperature=2.5, images="9 images", ece=(0.25, 0.125), evaluations={})
    export_network(f"run:{tmp_path / 'run'}@last", tmp_path / "scaled.onnx", calibration=calibration)
    scaled = (tmp_path / "scaled.onnx").read_bytes()
    torch.testing.assert_close(onnx_logits(scaled, images) * 2.5, expected.detach(), atol=1e-4, rtol=1e-4)
    assert "divided by the temperature 2.5, fitted on 9 images" in onnx.load_from_string(scaled).doc_string
