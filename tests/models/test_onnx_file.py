"""ONNX files from anyone: the same logits as in torch, and one line for each file that cannot be attacked."""

from __future__ import annotations

import copy
from pathlib import Path

import onnx
import pytest
import torch

from helpers.evaluation_cases import trained
from helpers.onnx_files import clean_images, coarse_network, onnx_file
from robustill.core.errors import CheckpointError, ConfigError, ModelError, RobustillError
from robustill.models.loading import Shape
from robustill.models.onnx import set_metadata
from robustill.models.onnx_file import load_onnx

SHAPE = Shape(num_classes=3, in_channels=1, image_size=(6, 6))
X = clean_images(7)


@pytest.mark.parametrize("batch", ["batch", 1, 4])
@pytest.mark.parametrize("scale", [None, 0.25])
def test_a_file_has_the_logits_of_its_network_for_any_number_of_images(tmp_path: Path, batch, scale) -> None:
    network = trained().eval()
    loaded = load_onnx(onnx_file(tmp_path / "net.onnx", network, batch=batch, scale=scale), SHAPE)
    expected = network if scale is None else coarse_network(network, scale)
    for count in (1, 4, 7):
        logits = loaded.module(X[:count].requires_grad_(True))
        assert not logits.requires_grad
        torch.testing.assert_close(logits, expected(X[:count]).detach(), atol=1e-4, rtol=1e-4)
    assert loaded.architecture == f"ONNX, {'float32' if scale is None else 'int8'}"
    assert loaded.module.model.num_bytes == (tmp_path / "net.onnx").stat().st_size
    torch.testing.assert_close(copy.deepcopy(loaded.module)(X), loaded.module(X))


def test_weights_are_counted_and_the_number_that_the_export_wrote_is_taken(tmp_path: Path) -> None:
    network = trained().eval()
    expected = sum(each.numel() for each in network.state_dict().values() if each.ndim)
    loaded = load_onnx(onnx_file(tmp_path / "net.onnx", network, scale=0.25), SHAPE)
    assert loaded.module.model.num_parameters == expected
    content = set_metadata((tmp_path / "net.onnx").read_bytes(), "a card", {"parameters": 12, "architecture": "lenet"})
    (tmp_path / "told.onnx").write_bytes(content)
    told = load_onnx(tmp_path / "told.onnx", SHAPE)
    assert (told.module.model.num_parameters, told.architecture) == (12, "ONNX, int8, lenet")
    assert told.sha256 != loaded.sha256


def test_two_files_are_two_networks_for_whoever_compares_their_tensors(tmp_path: Path) -> None:
    network = trained().eval()
    states = [
        load_onnx(onnx_file(tmp_path / "net.onnx", network, scale=scale), SHAPE).module.state_dict()
        for scale in (0.25, 0.5)
    ]
    assert not torch.equal(*(each["content_sha256"] for each in states))


def test_a_normalisation_in_front_of_the_file_is_that_of_the_user(tmp_path: Path) -> None:
    network, file = trained().eval(), tmp_path / "net.onnx"
    onnx_file(file, network)
    bytes_outside = load_onnx(file, SHAPE, std=[1 / 255]).module
    torch.testing.assert_close(bytes_outside(X), network(X * 255).detach(), atol=1e-3, rtol=1e-3)
    normalised = load_onnx(file, SHAPE, mean=[0.25], std=[0.5]).module
    torch.testing.assert_close(copy.deepcopy(normalised)(X), network((X - 0.25) / 0.5).detach(), atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match=r"--model\.mean has 3 values, and the images have 1 channels"):
        load_onnx(file, SHAPE, mean=[0.5] * 3)
    with pytest.raises(ConfigError, match=r"--model\.std is \[0\.0\]: expected positive values"):
        load_onnx(file, SHAPE, std=[0.0])


def test_data_beside_the_file_is_part_of_it_and_of_its_identity(tmp_path: Path) -> None:
    network = trained().eval()
    onnx_file(tmp_path / "net.onnx", network)
    model = onnx.load(tmp_path / "net.onnx")
    onnx.save_model(model, tmp_path / "split.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    loaded = load_onnx(tmp_path / "split.onnx", SHAPE)
    torch.testing.assert_close(loaded.module(X), network(X).detach(), atol=1e-4, rtol=1e-4)
    sizes = [(tmp_path / name).stat().st_size for name in ("split.onnx", "w.bin")]
    assert loaded.module.model.num_bytes == sum(sizes)
    content = bytearray((tmp_path / "w.bin").read_bytes())
    content[3] ^= 1
    (tmp_path / "w.bin").write_bytes(content)
    assert load_onnx(tmp_path / "split.onnx", SHAPE).sha256 != loaded.sha256
    (tmp_path / "w.bin").unlink()
    with pytest.raises(CheckpointError, match=r"needs its data 'w\.bin', which is not there"):
        load_onnx(tmp_path / "split.onnx", SHAPE)


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret.bin", "sub/../../secret.bin", "link.bin", ""])
def test_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(10_000))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")

    def move(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    with pytest.raises(CheckpointError, match="lies outside its folder") as caught:
        load_onnx(onnx_file(folder / "net.onnx", trained().eval(), change=move), SHAPE)
    assert "\n" not in str(caught.value)


def opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 999


def strange_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "my.company"
    model.opset_import.add(domain="my.company", version=1)


def strange_operator_inside_a_branch(model: onnx.ModelProto) -> None:
    inner = onnx.helper.make_graph([onnx.helper.make_node("F", [], ["o"], domain="my.company")], "inner", [], [])
    model.graph.node.append(onnx.helper.make_node("If", ["images"], ["p"], then_branch=inner, else_branch=inner))


def bytes_in(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8


def classes_out(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64


def two_inputs(model: onnx.ModelProto) -> None:
    model.graph.input.add().CopyFrom(model.graph.input[0])
    model.graph.input[1].name = "mask"


def two_outputs(model: onnx.ModelProto) -> None:
    model.graph.output.add().CopyFrom(model.graph.output[0])
    model.graph.output[1].name = "features"


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Nothing"


def impossible_flatten(model: onnx.ModelProto) -> None:
    # Promises logits for a batch, and gives one row for all of its images.
    next(node for node in model.graph.node if node.op_type == "Flatten").attribute.add(name="axis", type=2, i=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (opset, CheckpointError, r"has opset 999, of which the installed onnx knows 1 to \d+"),
        (
            strange_operator,
            CheckpointError,
            "operator 'Conv' of 'my.company' needs a library, which could",
        ),
        (strange_operator_inside_a_branch, CheckpointError, "operator 'F' of 'my.company' needs a library"),
        (bytes_in, ModelError, "takes uint8 images, expected float"),
        (classes_out, ModelError, "gives int64 values, expected logits: leave its argmax out"),
        (two_inputs, ModelError, r"has 2 inputs \('images', 'mask'\): export it with one"),
        (two_outputs, RobustillError, "features"),
        (unknown_operator, CheckpointError, "is damaged: No Op registered for Nothing"),
        (impossible_flatten, RobustillError, "fails on 2 images|cannot be run"),
    ],
)
def test_a_file_that_cannot_be_attacked_is_one_line(tmp_path: Path, change, error, message) -> None:
    file = onnx_file(tmp_path / "net.onnx", trained().eval(), change=change)
    with pytest.raises(error, match=message) as caught:
        load_onnx(file, SHAPE)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("image", "shape", "message"),
    [
        ((1, 6, 6), Shape(num_classes=4, in_channels=1, image_size=(6, 6)), r"gives \?×3 values, .* has 4 classes"),
        ((1, 6, 6), Shape(num_classes=3, in_channels=1, image_size=(9, 9)), r"or give --data\.image_size 6"),
        ((6, 6, 1), SHAPE, r"takes images of \?×6×6×1, .* are 1×6×6: .* channels first"),
        ((36,), SHAPE, r"takes images of \?×36, and those of the data are 1×6×6"),
        (("c", "h", "w"), Shape(num_classes=3, in_channels=1, image_size=(9, 9)), "fails on 2 images of 1×9×9"),
    ],
)
def test_images_and_classes_must_fit(tmp_path: Path, image, shape: Shape, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load_onnx(onnx_file(tmp_path / "net.onnx", trained().eval(), image), shape)
    assert str(caught.value).isprintable()


def test_noise_and_a_missing_file_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"noise" * 100)
    with pytest.raises(CheckpointError, match="is damaged, or not an ONNX model"):
        load_onnx(tmp_path / "net.onnx", SHAPE)
    with pytest.raises(CheckpointError, match="No such file"):
        load_onnx(tmp_path / "missing.onnx", SHAPE)
    file = onnx_file(tmp_path / "cut.onnx", trained().eval())
    file.write_bytes(file.read_bytes()[:900])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_onnx(file, SHAPE)
