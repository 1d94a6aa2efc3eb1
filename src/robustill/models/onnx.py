"""A network as an ONNX model, for runtimes that know no Python; needs the extra `export`."""

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


def onnx_model(program: torch.export.ExportedProgram, about: str) -> bytes:
    """The model: "images", float32 [batch,C,H,W] in [0,1], to "logits", float32 [batch,K].

    Args:
        program: of a network in eval mode.
        about: what the model says of itself.

    Raises:
        ConfigError: packages are missing.
        ModelError: the program cannot be translated.
    """
    _need("onnx", "onnxscript")
    with _quiet():
        try:
            translated = torch.onnx.export(
                program, dynamo=True, input_names=["images"], output_names=["logits"], verbose=False
            )
        except Exception as error:  # There are as many ways to fail as operators.
            # Around the cause lies advice to torch's own developers.
            reason = first_line(error.__cause__ or error)
            raise ModelError(f"the network cannot be translated to ONNX: {reason}") from None
    assert translated is not None
    model = translated.model_proto
    _forget_where_it_was_made(model)
    _name_the_batch(model)
    model.doc_string = about
    return bytes(model.SerializeToString())


def onnx_logits(model: bytes, images: Tensor) -> Tensor:
    """What onnxruntime makes of images [B,C,H,W]: logits [B,K].

    Raises:
        ConfigError: onnxruntime is missing.
    """
    _need("onnxruntime")
    # Read when the package is imported; without it, it reports to its makers.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    return torch.from_numpy(logits)


def _need(*packages: str) -> None:
    missing = [name for name in packages if installed_version(name) is None]
    if missing:
        raise ConfigError(f"an ONNX file needs {', '.join(missing)}: pip install 'robustill[export]'")


def _forget_where_it_was_made(model: Any) -> None:
    """Every node carries the lines of source that it comes from, with the folders of whoever wrote it."""
    for graph in (model.graph, *model.functions):
        # What is known of values in between follows from the inputs.
        del graph.value_info[:], graph.metadata_props[:]
        for node in graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]


def _name_the_batch(model: Any) -> None:
    """Which a tracer calls s77 or the like."""
    for value in (*model.graph.input, *model.graph.output):
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param:
                side.dim_param = "batch"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the translator says of itself: deprecations, and operators of packages that are not there."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
