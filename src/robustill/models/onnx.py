"""Networks as ONNX models, for runtimes without Python; needs the extra `export`."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from robustill.core.device import installed_version
from robustill.core.errors import ConfigError, ModelError, first_line


def onnx_model(program: torch.export.ExportedProgram, description: str) -> bytes:
    """Translate a program to ONNX: "images", float32 [batch,C,H,W] in [0,1], to "logits", float32 [batch,K].

    Args:
        program: of a network in eval mode.
        description: the doc string of the model.

    Raises:
        ConfigError: onnx or onnxscript is missing.
        ModelError: the program cannot be translated.
    """
    _require("onnx", "onnxscript")
    with _silenced():
        try:
            translated = torch.onnx.export(
                program, dynamo=True, input_names=["images"], output_names=["logits"], verbose=False
            )
        except Exception as error:  # Every operator can fail in its own way.
            # The error around the cause is advice to torch's developers.
            reason = first_line(error.__cause__ or error)
            raise ModelError(f"the network cannot be translated to ONNX: {reason}") from None
    assert translated is not None
    model = translated.model_proto
    _remove_source_locations(model)
    _name_batch_dimension(model)
    model.doc_string = description
    return bytes(model.SerializeToString())


def onnx_logits(model: bytes, images: Tensor) -> Tensor:
    """Compute with onnxruntime the logits [B,K] of images [B,C,H,W].

    Raises:
        ConfigError: onnxruntime is missing.
    """
    _require("onnxruntime")
    # Read when the package is imported, which otherwise sends usage data to its makers.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    return torch.from_numpy(logits)


def _require(*packages: str) -> None:
    """Raise ConfigError if packages are missing."""
    missing = [name for name in packages if installed_version(name) is None]
    if missing:
        raise ConfigError(f"an ONNX file needs {', '.join(missing)}: pip install 'robustill[export]'")


def _remove_source_locations(model: Any) -> None:
    """Remove the source lines, with the paths of the user's folders, that torch stores in every node."""
    for graph in (model.graph, *model.functions):
        # The shapes of intermediate values follow from those of the inputs.
        del graph.value_info[:], graph.metadata_props[:]
        for node in graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]


def _name_batch_dimension(model: Any) -> None:
    """Rename the first dimension to "batch"; torch's tracer calls it s77 or the like."""
    for value in (*model.graph.input, *model.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = "batch"


@contextmanager
def _silenced() -> Iterator[None]:
    """Suppress the translator's warnings and log lines: deprecations, and operators of packages that are missing."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
