"""Programs of torch.export, read without running code: every part is checked, and only what was checked is passed on.

`torch.export.load` unpickles without limits: weights and constants that say so, sample inputs that are damaged, whole
objects. A graph can also name any attribute of torch as a function to call, its names become Python source, and so do
expressions of sizes. So a new archive is made of the checked parts alone: plain tensors, operators of aten, plain
names, sizes that are sums and products of numbers and symbols; no guards, no metadata. More is refused.
"""

from __future__ import annotations

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
from robustill.core.errors import CheckpointError, ModelError

_PARTS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/\w+|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
)
_PAYLOAD = re.compile(r"(weight|tensor)_\d+")
_OPERATOR = re.compile(r"torch\.ops\.aten\.[a-z]\w*\.[A-Za-z]\w*|_operator\.(getitem|add|sub|mul|floordiv)")
# As sympy writes them; names and calls of nothing else.
_SIZE = re.compile(
    r"(Symbol\('[su]\d{1,9}'(, (positive|nonnegative|integer|real)=True)*\)|Integer\(-?\d{1,9}\)|(Mul|Add)\(|, |\)"
    r"|-?\d{1,9})+"
)
# Of nodes, inputs and weights: torch writes them into the source of the function that it makes of a graph.
_NAME = re.compile(r"[\w.+-]*")
_CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict"}


class Exported(nn.Module):
    """A program as a network; it is in the mode in which it was exported, for good."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program
        # torch hands programs over marked as training, whatever they were exported in.
        for module in self.modules():
            module.training = False

    def forward(self, x: Tensor) -> Tensor:
        """Images [B,C,H,W] in [0,1] -> logits [B,K]."""
        return self.program(x)  # type: ignore[no-any-return]

    def train(self, mode: bool = True) -> Exported:
        """Nothing: exported graphs have one mode, and torch's refuse the question."""
        return self


def load_exported(path: Path, shape: tuple[int, int, int]) -> Exported:
    """A .pt2 file of torch.export.save, exported in eval mode with a dynamic batch size.

    Args:
        path: the file.
        shape: C, H, W of the images that it will see.

    Raises:
        CheckpointError: missing, damaged, or with parts that could run code.
        ModelError: it takes other images, or one size of batch alone.
    """
    archive = _checked(path)
    try:
        program = Exported(torch.export.load(archive).module())
    except Exception as error:  # A damaged graph can fail anywhere in torch.
        raise CheckpointError(f"{path} is damaged, or of another version of torch ({_reason(error)})") from None
    for batch in (2, 3):
        try:
            with torch.no_grad():
                program(torch.zeros(batch, *shape))
        except Exception as error:
            raise ModelError(
                f"{path} fails on {batch} images of {'×'.join(map(str, shape))} ({_reason(error)}): export it for "
                "such images with dynamic_shapes=({0: torch.export.Dim('batch')},), or give image_size"
            ) from None
    return program


def _checked(path: Path) -> io.BytesIO:
    try:
        with path.open("rb") as file:
            refuse_zip_bomb(file, path.stat().st_size)
        with zipfile.ZipFile(path) as archive:
            parts = {info.filename.partition("/")[2]: archive.read(info) for info in _plain(archive, path)}
        for name in ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json"):
            _check_payloads(json.loads(parts[name]), path)
        graph = _without_metadata(json.loads(parts["models/model.json"]))
        graph["guards_code"] = []
        _check_graph(graph, path)
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, RecursionError, OSError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged, or no file of torch.export.save ({_reason(error)})") from None
    parts["models/model.json"] = json.dumps(graph).encode()
    parts["data/sample_inputs/model.pt"] = _plain_inputs(parts["data/sample_inputs/model.pt"], path)
    rebuilt = io.BytesIO()
    with zipfile.ZipFile(rebuilt, "w") as fresh:
        for name, content in parts.items():
            fresh.writestr(f"program/{name}", content)
    rebuilt.seek(0)
    return rebuilt


def _plain(archive: zipfile.ZipFile, path: Path) -> Iterator[zipfile.ZipInfo]:
    """Every member, if all of them are parts of a plain program, uncompressed as torch writes them."""
    for info in archive.infolist():
        part = info.filename.partition("/")[2]
        if not _PARTS.fullmatch(part) or info.compress_type != zipfile.ZIP_STORED:
            raise _refused(path, f"the part {info.filename!r}")
        yield info


def _check_payloads(page: dict[str, Any], path: Path) -> None:
    for name, payload in page["config"].items():
        if payload["use_pickle"] is not False or not _PAYLOAD.fullmatch(payload["path_name"]):
            raise _refused(path, f"the pickle {name!r}")


def _check_graph(graph: dict[str, Any], path: Path) -> None:
    for key, value in _items(graph):
        texts = [key, *(value if isinstance(value, list) else [value])]
        if key in ("in_spec", "out_spec") and value is not None:
            _check_containers(json.loads(value), path)
        elif key == "expr_str":
            if not (isinstance(value, str) and _SIZE.fullmatch(value)):
                raise _refused(path, f"the size {value!r}")
        elif key == "target" and isinstance(value, str):
            if not _OPERATOR.fullmatch(value):
                raise _refused(path, f"the operator {value!r}")
        elif not all(_NAME.fullmatch(text) for text in texts if isinstance(text, str)):
            raise _refused(path, f"the name {value!r}")


def _check_containers(spec: Any, path: Path) -> None:
    for key, value in _items(spec):
        allowed = {"type": _CONTAINERS, "context": {None, "null", "[]"}}.get(key)
        if allowed is not None and value not in allowed:
            raise _refused(path, f"the container {value!r}")


def _without_metadata(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: {} if key == "metadata" else _without_metadata(inner) for key, inner in value.items()}
    return [_without_metadata(inner) for inner in value] if isinstance(value, list) else value


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of nested JSON."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _items(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _items(inner)


def _refused(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} is refused: {what} could run code; ask for its weights as .safetensors")


def _plain_inputs(content: bytes, path: Path) -> bytes:
    """Tensors only, saved again: torch tries an unlimited unpickler where the limited one fails."""
    try:
        (images,), named = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:
        raise _refused(path, "a pickle as its sample inputs") from None
    if not isinstance(images, Tensor) or named != {}:
        raise CheckpointError(f"{path} takes other inputs than one tensor of images")
    buffer = io.BytesIO()
    torch.save(((torch.zeros(images.shape, dtype=images.dtype),), {}), buffer)
    return buffer.getvalue()


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
