"""Programs of torch.export (.pt2), read without running code from the file.

`torch.export.load` unpickles without limits: weights and constants that are marked as pickles, damaged sample inputs,
whole objects. A graph can also name any attribute of torch as a function to call, and its names and its expressions of
sizes become Python source. Therefore every part is checked, and a new archive of the checked parts alone is loaded:
plain tensors, operators of torch whose schema takes tensors, numbers and words for an option, plain names, and sizes
that are formulas of numbers and symbols, without guards and metadata. A file with anything else is refused.
"""

from __future__ import annotations

import importlib
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustill.core.archives import refuse_zip_bomb
from robustill.core.errors import CheckpointError, ModelError, first_line

_PARTS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/\w+|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
)
_PAYLOAD = re.compile(r"(weight|tensor)_\d+")
_OPERATOR = re.compile(r"torch\.ops\.(aten|prims)\.(\w+)\.(\w+)")
_OF_SIZES = re.compile(
    r"_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|neg|pos|eq|ne|lt|le|gt|ge|and_|or_)"
    r"|torch\.sym_(int|float|not|ite|min|max|sqrt)|math\.trunc"
)
"""Functions that a graph computes sizes with."""
_TYPE = re.compile(r"(Optional\[|List\[)*(Tensor|int|float|complex|number|bool|Device|Generator|str)\]*")
"""Types of arguments and results that cannot hold code; torch writes data types and layouts as int."""
_WORDS = {
    "UPLO", "approximate", "assert_msg", "driver", "equation", "indexing", "interpolation", "mode", "norm", "ord", "p",
    "pad_mode", "padding", "padding_side", "reduce", "rounding_mode", "side",
}  # fmt: skip
"""Arguments of type str that are words for an option, and no names of files."""
_TEXT = re.compile(r"[\w.,>+-]*( [\w.,>+-]+)*")
"""A word for an option, or an equation of einsum."""
# A size as sympy writes it, without any other names and calls.
_SIZE = re.compile(
    r"(Symbol\('[su]\d{1,9}'(, (positive|nonnegative|integer|real)=True)*\)|Integer\(-?\d{1,9}\)"
    r"|(Mul|Add|Min|Max|FloorDiv|CleanDiv|Mod|PythonMod|ModularIndexing|CeilToInt|FloorToInt)\(|, |\)"
    r"|-?\d{1,9})+"
)
# A name of a node, input or weight: torch writes it into the source of the function that it makes of a graph.
_NAME = re.compile(r"[\w.+-]*")
_CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict"}


class ExportedNetwork(nn.Module):
    """A program of torch.export as a network; it stays in the mode in which it was exported."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program
        # torch returns programs marked as training, whatever mode they were exported in.
        for module in self.modules():
            module.training = False

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits [B,K] of images [B,C,H,W] in [0,1]."""
        return self.program(x)  # type: ignore[no-any-return]

    def train(self, mode: bool = True) -> ExportedNetwork:
        """Do nothing: an exported graph has one mode, and torch's own `train` raises an error."""
        return self


def load_exported(path: Path, shape: tuple[int, int, int]) -> ExportedNetwork:
    """Load a .pt2 file of torch.export.save, exported in eval mode with a dynamic batch size.

    Args:
        path: the file.
        shape: C, H, W of the images that it will be given.

    Raises:
        CheckpointError: a file that is missing or damaged, or has parts that could run code.
        ModelError: the program takes images of another shape, or batches of one size only.
    """
    archive = _checked_archive(path)
    try:
        program = ExportedNetwork(torch.export.load(archive).module())
    except Exception as error:  # A damaged graph can fail anywhere in torch.
        raise CheckpointError(f"{path} is damaged, or of another version of torch ({first_line(error)})") from None
    size = "×".join(map(str, shape))
    for batch_size in (2, 3):
        try:
            with torch.no_grad():
                program(torch.zeros(batch_size, *shape))
        except Exception as error:
            raise ModelError(
                f"{path} fails on {batch_size} images of {size} ({first_line(error)}): export it for "
                "such images with dynamic_shapes=({0: torch.export.Dim('batch')},), or give image_size"
            ) from None
    return program


def _checked_archive(path: Path) -> io.BytesIO:
    """Return a new archive of the parts of a file, after checking each of them."""
    try:
        with path.open("rb") as file:
            refuse_zip_bomb(file, path.stat().st_size)
        with zipfile.ZipFile(path) as archive:
            parts = {info.filename.partition("/")[2]: archive.read(info) for info in _checked_members(archive, path)}
        for name in ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json"):
            _check_payloads(json.loads(parts[name]), path)
        graph = _without_metadata(json.loads(parts["models/model.json"]))
        graph["guards_code"] = []
        _check_graph(graph, path)
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, RecursionError, OSError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged, or not a file of torch.export.save ({first_line(error)})") from None
    parts["models/model.json"] = json.dumps(graph).encode()
    parts["data/sample_inputs/model.pt"] = _zero_inputs(parts["data/sample_inputs/model.pt"], path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in parts.items():
            archive.writestr(f"program/{name}", content)
    buffer.seek(0)
    return buffer


def _checked_members(archive: zipfile.ZipFile, path: Path) -> Iterator[zipfile.ZipInfo]:
    """Yield every member; refuse one that is no part of a plain program, or compressed, which torch's never are."""
    for info in archive.infolist():
        part = info.filename.partition("/")[2]
        if not _PARTS.fullmatch(part) or info.compress_type != zipfile.ZIP_STORED:
            raise _refusal(path, f"the part {info.filename!r}")
        yield info


def _check_payloads(description: dict[str, Any], path: Path) -> None:
    """Refuse weights or constants that are pickles."""
    for name, payload in description["config"].items():
        if payload["use_pickle"] is not False or not _PAYLOAD.fullmatch(payload["path_name"]):
            raise _refusal(path, f"the pickle {name!r}")


def _check_graph(graph: dict[str, Any], path: Path) -> None:
    """Refuse a graph with containers, sizes, operators or names that could run code."""
    for key, value in _nested_items(graph):
        values = value if isinstance(value, list) else [value]
        if key in ("in_spec", "out_spec") and value is not None:
            _check_containers(json.loads(value), path)
        elif key == "expr_str":
            if not (isinstance(value, str) and _SIZE.fullmatch(value)):
                raise _refusal(path, f"the size {value!r}")
        elif key == "target" and isinstance(value, str):
            _check_operator(value, path)
        elif key == "as_string" and isinstance(value, str):
            if not _TEXT.fullmatch(value):
                raise _refusal(path, f"the text {value!r}")
        elif not all(_NAME.fullmatch(each) for each in [key, *values] if isinstance(each, str)):
            raise _refusal(path, f"the name {value!r}")


def _check_operator(target: str, path: Path) -> None:
    """Refuse an operator other than those of torch whose schema takes tensors, numbers and words for an option.

    The schema is looked up in torch's table of operators: no attribute of anything is read on the way.
    """
    if _OF_SIZES.fullmatch(target):
        return
    found = _OPERATOR.fullmatch(target)
    if found is None:
        if target.startswith("torch.ops.higher_order."):
            raise _refusal(path, f"the operator {target!r}, a graph inside the graph,")
        raise _refusal(path, f"the operator {target!r}")
    namespace, name, overload = found.groups()
    if namespace == "prims":
        # Registers its operators.
        importlib.import_module("torch._prims")
    try:
        schema = torch._C._get_schema(f"{namespace}::{name}", "" if overload == "default" else overload)
    except RuntimeError:
        raise CheckpointError(
            f"{path} is refused: torch {torch.__version__} has no operator {target!r}; export it with this version"
        ) from None
    for each in (*schema.arguments, *schema.returns):
        kind = _TYPE.fullmatch(str(each.type))
        if kind is None or (kind[2] == "str" and each.name not in _WORDS):
            raise _refusal(path, f"the operator {target!r} with its argument {each.name or 'result'} ({each.type})")


def _check_containers(spec: Any, path: Path) -> None:
    """Refuse a specification of inputs or outputs with other containers than tuples, lists and dicts."""
    for key, value in _nested_items(spec):
        allowed = {"type": _CONTAINERS, "context": {None, "null", "[]"}}.get(key)
        if allowed is not None and value not in allowed:
            raise _refusal(path, f"the container {value!r}")


def _without_metadata(value: Any) -> Any:
    """Return nested JSON with every "metadata" empty."""
    if isinstance(value, dict):
        return {key: {} if key == "metadata" else _without_metadata(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_metadata(inner) for inner in value]
    return value


def _nested_items(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key and value of nested JSON."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _nested_items(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _nested_items(inner)


def _refusal(path: Path, part: str) -> CheckpointError:
    return CheckpointError(f"{path} is refused: {part} could run code; ask for its weights as .safetensors")


def _zero_inputs(content: bytes, path: Path) -> bytes:
    """Return sample inputs of zeros: torch unpickles stored ones without limits if they are damaged."""
    try:
        (images,), keywords = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:
        raise _refusal(path, "a pickle as its sample inputs") from None
    if not isinstance(images, Tensor) or keywords != {}:
        raise CheckpointError(f"{path} takes inputs other than one tensor of images: export a network of images alone")
    buffer = io.BytesIO()
    torch.save(((torch.zeros(images.shape, dtype=images.dtype),), {}), buffer)
    return buffer.getvalue()
