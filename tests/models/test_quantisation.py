"""int8 models: of the layout that was asked for, with the answers that are stated, beside those in float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from helpers.small_runs import small_config
from robustill.core.errors import ConfigError, ModelError
from robustill.evaluation.held_out import held_out_images
from robustill.models.card import Calibration, Quantisation
from robustill.models.export import export_network
from robustill.models.onnx import exported_facts, onnx_logits
from robustill.models.quantisation import HeldOutImages, compare_quantised, quantised_model
from robustill.training.loop import train


def images(count: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def linear_model(weight: np.ndarray) -> bytes:
    """A model of one convolution over the whole image: logits [batch,K] = sum of weight [K,1,8,8] times images."""
    nodes = [
        helper.make_node("Conv", ["images", "weight"], ["maps"]),
        helper.make_node("Flatten", ["maps"], ["logits"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(weight)])],
        [numpy_helper.from_array(weight.astype(np.float32), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


WEIGHT = np.random.default_rng(0).normal(size=(4, 1, 8, 8)) * np.array([1, 10, 100, 1000])[:, None, None, None]


def test_weights_are_int8_for_each_channel_and_activations_are_uint8() -> None:
    model = onnx.load_from_string(quantised_model(linear_model(WEIGHT), images()))
    onnx.checker.check_model(model, full_check=True)
    stored = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    weight = next(value for value in stored.values() if value.shape == WEIGHT.shape)
    assert weight.dtype == np.int8
    quantise = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert {stored[node.input[2]].dtype for node in quantise} == {np.dtype("uint8")}
    (dequantise,) = [
        node
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in stored and stored[node.input[0]].ndim == 4
    ]
    scale = stored[dequantise.input[1]]
    # The channels differ by factors of ten, and so do their scales; one scale would leave nothing of the first.
    np.testing.assert_allclose(scale, np.abs(WEIGHT).max(axis=(1, 2, 3)) / 127, rtol=0.02)
    np.testing.assert_allclose(weight * scale[:, None, None, None], WEIGHT, atol=float(scale.max()))


def test_the_comparison_is_what_both_models_answer() -> None:
    model = linear_model(WEIGHT)
    quantised = quantised_model(model, images())
    x, y = images(30, seed=1), torch.arange(30) % 4
    found = compare_quantised(model, quantised, HeldOutImages(calibration=images(), x=x, y=y, source="made-up images"))
    expected = (torch.einsum("nchw,kchw->nk", x.double(), torch.from_numpy(WEIGHT))).float()
    answers = onnx_logits(quantised, x)
    assert found.agreement == float((answers.argmax(1) == expected.argmax(1)).float().mean())
    assert found.largest_change == pytest.approx(float((answers - expected).abs().max()), rel=1e-3)
    assert found.largest_change > 0
    assert found.clean_accuracy == tuple(float((each.argmax(1) == y).float().mean()) for each in (expected, answers))
    assert found.num_bytes == (len(model), len(quantised))
    assert "calibrated on 40 made-up images; on 30 others" in str(found)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    train(small_config(model={"width": 4}, data={"train_size": 400}, method={"name": "clean"}), run, progress=False)
    return run


@pytest.mark.slow
def test_a_run_is_exported_in_int8_with_its_temperature_and_a_card_that_says_so(run: Path, tmp_path: Path) -> None:
    spec = f"run:{run}@last"
    held_out = held_out_images(spec)
    export_network(spec, tmp_path / "net.onnx")
    calibration = Calibration(temperature=2.5, images="9 images", ece=(0.25, 0.125), evaluations={})
    export_network(spec, tmp_path / "int8.onnx", int8=held_out, calibration=calibration)
    content = (tmp_path / "int8.onnx").read_bytes()
    facts = exported_facts(content)
    quantisation = Quantisation(**facts["quantisation"])
    assert quantisation.agreement > 0.9
    float32 = onnx_logits((tmp_path / "net.onnx").read_bytes(), held_out.x)
    change = float((onnx_logits(content, held_out.x) - float32 / 2.5).abs().max())
    assert quantisation.largest_change == pytest.approx(change, rel=1e-3)
    card = onnx.load_from_string(content).doc_string
    assert str(quantisation) in card
    assert "divided by the temperature 2.5" in card
    assert "ms at batch 32" in card
    assert facts["deployment"]["milliseconds"].keys() == {"1", "32"}
    assert str(run.parent).encode() not in content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8.onnx", "net.onnx"]


def test_int8_is_refused_where_it_cannot_be(run: Path, tmp_path: Path) -> None:
    held_out = held_out_images(f"run:{run}@last")
    with pytest.raises(ConfigError, match=r"net\.pt2 cannot be quantised to int8: give a name that ends in \.onnx"):
        export_network(f"run:{run}@last", tmp_path / "net.pt2", int8=held_out)
    others = replace(held_out, x=torch.rand(3, 3, 8, 8))
    with pytest.raises(ModelError, match="takes images of 1×8×8, and those to calibrate on are 3×8×8"):
        export_network(f"run:{run}@last", tmp_path / "net.onnx", int8=others)
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_quantised_is_one_line() -> None:
    with pytest.raises(ModelError, match=r"cannot be quantised to int8: .+") as caught:
        quantised_model(b"noise", images())
    assert str(caught.value).isprintable()


def test_logits_that_are_not_finite_are_refused() -> None:
    model = linear_model(WEIGHT)
    broken = linear_model(np.full_like(WEIGHT, np.nan))
    held_out = HeldOutImages(calibration=images(), x=images(), y=torch.zeros(40, dtype=torch.int64), source="images")
    with pytest.raises(ModelError, match="gives NaN or infinite logits"):
        compare_quantised(model, broken, held_out)
