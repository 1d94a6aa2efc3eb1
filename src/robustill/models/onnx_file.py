"""ONNX files as networks without a gradient: onnxruntime computes their logits, and nothing of them runs as code.

A file may come from anyone. It is checked by onnx first; data beside it is read from its own folder alone, and
operators that need a library of their own are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustill.core.errors import CheckpointError, ConfigError, ModelError, first_line
from robustill.models.deployment import measure_model
from robustill.models.layers import Normalize
from robustill.models.loading import LoadedNetwork, Shape
from robustill.models.onnx import open_session, read_metadata, require

_LARGEST = 2**31 - 1
"""Bytes of a file with its data, as protobuf has it."""
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Of the operators that onnxruntime has without further libraries."""
_QUANTISED = ("QuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")
_NUM_TRIED = (2, 3)
"""Batch sizes in which a file is tried."""


@dataclass(frozen=True, kw_only=True)
class OnnxModel:
    """A checked model: images in float32 to logits.

    Args:
        content: the model with all of its data.
        sha256: of the file; with external data, of the hashes of all files.
        num_bytes: of all files.
        facts: what `robustill export` wrote into it; empty for other files.
        num_parameters: number of its weights.
        batch_size: the only one that it takes; None for any.
        layers: "int8" if it has quantised operators, else "float32".
    """

    content: bytes
    sha256: str
    num_bytes: int
    facts: Mapping[str, Any]
    num_parameters: int
    batch_size: int | None
    layers: str


class OnnxNetwork(nn.Module):
    """An ONNX model as a network that has logits and no gradient.

    Args:
        model: the model.
        label: how errors name it.
        normalize: the normalisation in front of it; None for a file that takes images in [0,1].
    """

    def __init__(self, model: OnnxModel, label: str, normalize: Normalize | None = None) -> None:
        super().__init__()
        self.model, self.label = model, label
        self.normalize = normalize
        # The identity of its weights, for everything that compares networks by their tensors.
        self.register_buffer("content_sha256", torch.tensor(list(hashlib.sha256(model.content).digest())).byte())
        self.session = open_session(model.content)
        (images,) = self.session.get_inputs()
        self.input_name = images.name

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits [B,K] of images [B,C,H,W] in [0,1], without a gradient."""
        with torch.no_grad():
            images = x.detach().float()
            if self.normalize is not None:
                images = self.normalize(images)
            logits = self._run(np.ascontiguousarray(images.cpu().numpy()))
        return torch.from_numpy(logits).to(x.device, torch.float32)

    def _run(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        size = self.model.batch_size
        if size is None:
            return self._logits(images)
        parts = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            # The last batch is filled up with its own images.
            full = part if len(part) == size else np.resize(part, (size, *part.shape[1:]))
            parts.append(self._logits(full)[: len(part)])
        return np.concatenate(parts)

    def _logits(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        (logits,) = self.session.run(None, {self.input_name: images})
        return np.asarray(logits)

    def measure(self, image_shape: Sequence[int]) -> dict[str, Any]:
        """Measure what the file costs to run, see `robustill.models.deployment`."""
        return measure_model(self.model.content, image_shape, num_bytes=self.model.num_bytes)

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxNetwork:
        """Return another network of the same file; its runtime has no state."""
        normalize = None if self.normalize is None else Normalize(*self.normalisation)
        return OnnxNetwork(self.model, self.label, normalize)

    @property
    def normalisation(self) -> tuple[list[float], list[float]]:
        """The mean and std in front of it."""
        assert self.normalize is not None
        return self.normalize.mean.flatten().tolist(), self.normalize.std.flatten().tolist()


def is_onnx_file(path: Path) -> bool:
    """Return whether a path is that of an ONNX file, by its name."""
    return path.suffix.lower() == ".onnx" and path.is_file()


def load_onnx(
    path: Path, shape: Shape, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> LoadedNetwork:
    """Load an ONNX file as a network without a gradient, see `OnnxNetwork`.

    Args:
        path: the file.
        shape: the images and the classes that it must fit.
        mean: of each channel, for a file that takes images normalised outside; None is 0.
        std: of each channel; 1/255 for a file that takes images from 0 to 255. None is 1.

    Raises:
        ConfigError: onnx or onnxruntime is missing, or mean and std do not fit the channels.
        CheckpointError: the file is damaged, too new, or refused.
        ModelError: it takes or gives something else than images of this shape and logits of these classes.
    """
    model = read_onnx(path, shape)
    normalize = None
    if mean is not None or std is not None:
        normalize = _normalize(shape.in_channels, mean, std)
    try:
        network = OnnxNetwork(model, path.name, normalize).eval()
    except ConfigError:
        raise
    except Exception as error:  # onnxruntime has an exception for each status.
        raise CheckpointError(f"{path} cannot be run by onnxruntime: {_reason(error)}") from None
    _try(network, path, shape)
    source = model.facts.get("architecture")
    architecture = f"ONNX, {model.layers}" + (f", {source}" if isinstance(source, str) else "")
    return LoadedNetwork(
        module=network,
        spec=str(path),
        sha256=model.sha256,
        shape=shape,
        architecture=architecture,
        trained="an ONNX file",
    )


def read_onnx(path: Path, shape: Shape) -> OnnxModel:
    """Read and check an ONNX file, with the external data in its folder.

    Raises:
        ConfigError: onnx is missing.
        CheckpointError: the file is damaged, too new, or refused.
        ModelError: its input is not images of this shape, or its output not logits of these classes.
    """
    require("onnx", "onnxruntime")
    import onnx

    try:
        if path.stat().st_size > _LARGEST:
            raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes: an ONNX file has 2 GiB at most")
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    try:
        proto = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's DecodeError, and others by version.
        raise CheckpointError(f"{path} is damaged, or not an ONNX model ({first_line(error)})") from None
    digests, num_bytes = [hashlib.sha256(content).hexdigest()], len(content)
    _check_operators(proto, path)
    for data in _external_files(proto, path):
        digests.append(hashlib.sha256(data.read_bytes()).hexdigest())
        num_bytes += data.stat().st_size
    try:
        if len(digests) > 1:
            onnx.external_data_helper.load_external_data_for_model(proto, str(path.parent))
            content = proto.SerializeToString()
        onnx.checker.check_model(content)
    except Exception as error:  # ValidationError, and whatever a damaged tensor raises.
        raise CheckpointError(f"{path} is damaged: {first_line(error)}") from None
    sha256 = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    facts = read_metadata(proto)
    num_parameters = facts.get("parameters")
    return OnnxModel(
        content=content,
        sha256=sha256,
        num_bytes=num_bytes,
        facts=facts,
        num_parameters=num_parameters if isinstance(num_parameters, int) else _count_weights(proto),
        batch_size=_check_signature(proto, path, shape),
        layers="int8" if any(node.op_type in _QUANTISED for node in proto.graph.node) else "float32",
    )


def _check_operators(proto: Any, path: Path) -> None:
    """Refuse a version of ONNX that is unknown here, and operators that are not among those of onnxruntime."""
    import onnx

    own = {each.domain for each in proto.functions}
    for each in proto.opset_import:
        newest = onnx.defs.onnx_opset_version()
        if each.domain in ("", "ai.onnx") and not 1 <= each.version <= newest:
            raise CheckpointError(
                f"{path} has opset {each.version}, of which the installed onnx knows 1 to {newest}: export it with an "
                "older opset, or install a newer onnx and onnxruntime"
            )
    for message in _messages(proto):
        if isinstance(message, onnx.NodeProto) and message.domain not in (*_DOMAINS, *own):
            raise CheckpointError(
                f"{path} is refused: its operator {message.op_type!r} of {message.domain!r} needs a library, which "
                "could run any code; export it with the operators of ONNX"
            )


def _external_files(proto: Any, path: Path) -> list[Path]:
    """Return the files with data of the model, after checking that each is a regular file inside the model's folder."""
    import onnx

    found: dict[str, Path] = {}
    for message in _messages(proto):
        if not isinstance(message, onnx.TensorProto) or message.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = {each.key: each.value for each in message.external_data}.get("location", "")
        if location in found:
            continue
        parts = PurePosixPath(location.replace("\\", "/"))
        file, folder = path.parent / location, path.parent.resolve()
        if not location or parts.is_absolute() or ".." in parts.parts or not file.resolve().is_relative_to(folder):
            raise CheckpointError(
                f"{path} is refused: its data {location!r} lies outside its folder; save it with all of its data in "
                "one file, or beside it"
            )
        if not file.is_file():
            raise CheckpointError(f"{path} needs its data {location!r}, which is not there: put it into the folder")
        if file.stat().st_size > _LARGEST:
            raise CheckpointError(f"{file} has {file.stat().st_size:,} bytes: an ONNX model has 2 GiB at most")
        found[location] = file
    return list(found.values())


def _messages(message: Any) -> Iterator[Any]:
    """Yield a message of protobuf and every message inside it."""
    from google.protobuf.message import Message

    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in [value] if isinstance(value, Message) else value:
                yield from _messages(each)


def _count_weights(proto: Any) -> int:
    """Return the number of weights: those in tensors that are no scale or zero point of a quantisation."""
    scales = {name for node in proto.graph.node if "Linear" in node.op_type for name in node.input[1:]}
    floats = [each for each in proto.graph.initializer if each.name not in scales and len(each.dims) > 0]
    return sum(int(np.prod(each.dims)) for each in floats)


def _check_signature(proto: Any, path: Path, shape: Shape) -> int | None:
    """Check the types and the shapes of the input and the output; return the batch size if it is fixed."""
    stored = {each.name for each in proto.graph.initializer}
    inputs = [each for each in proto.graph.input if each.name not in stored]
    outputs = list(proto.graph.output)
    for kind, values in (("inputs", inputs), ("outputs", outputs)):
        if len(values) != 1:
            names = ", ".join(repr(each.name) for each in values) or "none"
            raise ModelError(f"{path} has {len(values)} {kind} ({names}): export it with one, images to logits")
    if _type_name(inputs[0]) != "float":
        raise ModelError(
            f"{path} takes {_type_name(inputs[0])} images, expected float: export it with a float input, before any "
            "conversion or quantisation of the images"
        )
    if not _type_name(outputs[0]).startswith(("float", "double", "bfloat")):
        raise ModelError(f"{path} gives {_type_name(outputs[0])} values, expected logits: leave its argmax out")
    sizes, logits = _sizes(inputs[0]), _sizes(outputs[0])
    C, (H, W) = shape.in_channels, shape.image_size
    if len(sizes) != 4 or not _fits(sizes[1:], (C, H, W)):
        hint = ", channels first" if len(sizes) == 4 and _fits(sizes[1:], (H, W, C)) else ""
        if len(sizes) == 4 and sizes[1] == C:
            hint = f", or give --data.image_size {sizes[2]}"
        raise ModelError(
            f"{path} takes images of {_written(sizes)}, and those of the data are {C}×{H}×{W}: export it for batches "
            f"of such images{hint}"
        )
    if logits and (len(logits) != 2 or not _fits(logits[1:], (shape.num_classes,))):
        raise ModelError(
            f"{path} gives {_written(logits)} values, but the data has {shape.num_classes} classes: expected logits "
            f"?×{shape.num_classes}"
        )
    return sizes[0]


def _fits(sizes: Sequence[int | None], expected: Sequence[int]) -> bool:
    return all(size in (None, own) for size, own in zip(sizes, expected, strict=True))


def _sizes(value: Any) -> list[int | None]:
    """Return the sizes of an input or output, None where any is taken; an empty list where nothing is said."""
    return [each.dim_value if each.HasField("dim_value") else None for each in value.type.tensor_type.shape.dim]


def _written(sizes: Sequence[int | None]) -> str:
    return "×".join("?" if size is None else str(size) for size in sizes) or "no known shape"


def _type_name(value: Any) -> str:
    import onnx

    if not value.type.HasField("tensor_type"):
        return str(value.type.WhichOneof("value")).removesuffix("_type")
    name: str = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
    return name.lower()


def _normalize(channels: int, mean: Sequence[float] | None, std: Sequence[float] | None) -> Normalize:
    """Return the normalisation in front of a file.

    Raises:
        ConfigError: it does not fit the channels.
    """
    mean, std = [0.0] * channels if mean is None else mean, [1.0] * channels if std is None else std
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise ConfigError(f"--model.{name} has {len(values)} values, and the images have {channels} channels")
    if min(std) <= 0:
        raise ConfigError(f"--model.std is {list(std)}: expected positive values")
    return Normalize(mean, std)


def _try(network: OnnxNetwork, path: Path, shape: Shape) -> None:
    """Run a network on a few images, in batches of several sizes.

    Raises:
        ModelError: it fails, or its answers are no logits.
    """
    for count in _NUM_TRIED:
        images = torch.full((count, shape.in_channels, *shape.image_size), 0.5)
        try:
            logits = network(images)
        except Exception as error:  # onnxruntime has an exception for each status.
            raise ModelError(
                f"{path} fails on {count} images of {shape.in_channels}×{shape.image_size[0]}×{shape.image_size[1]} "
                f"({_reason(error)}): export it with a dynamic or a fixed batch size that it can be run with"
            ) from None
        if logits.shape != (count, shape.num_classes):
            raise ModelError(
                f"{path} gives {list(logits.shape)} for {count} images, expected [{count}, {shape.num_classes}]: "
                "export its logits, one for each class of the data"
            )


def _reason(error: Exception) -> str:
    # "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : what it is".
    return first_line(error).rpartition(" : ")[2]
