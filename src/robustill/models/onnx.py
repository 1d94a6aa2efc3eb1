"""Networks as ONNX models, for runtimes without Python; needs the extra `export`."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from robustill.core.device import installed_version
from robustill.core.errors import ConfigError, ModelError, first_line

METADATA_KEY = "robustill"
"""Of the metadata of an exported model; its value is JSON."""


def onnx_model(program: torch.export.ExportedProgram, description: str) -> bytes:
    """Translate a program to ONNX: "images", float32 [batch,C,H,W] in [0,1], to "logits", float32 [batch,K].

    Args:
        program: of a network in eval mode.
        description: the doc string of the model.

    Raises:
        ConfigError: onnx or onnxscript is missing.
        ModelError: the program cannot be translated.
    """
    require("onnx", "onnxscript")
    with silenced():
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
    session = open_session(model)
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    return torch.from_numpy(logits)


def open_session(model: bytes, *, num_threads: int | None = None) -> Any:
    """Return an onnxruntime.InferenceSession on the CPU, which prints nothing.

    Args:
        model: an ONNX model without external data.
        num_threads: of one operator; None is torch's number.

    Raises:
        ConfigError: onnxruntime is missing.
        Exception: of any kind, where onnxruntime cannot run the model.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or torch.get_num_threads()
    # Threads that wait for work would otherwise take the processor from torch.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def import_onnxruntime() -> Any:
    """Import onnxruntime, which sends no usage data to its makers then.

    Raises:
        ConfigError: it is missing.
    """
    require("onnxruntime")
    # Read when the package is imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def set_metadata(model: bytes, description: str, facts: Mapping[str, Any]) -> bytes:
    """Return a model with another doc string and with facts among its metadata, which `read_metadata` reads.

    Args:
        model: an ONNX model.
        description: the doc string.
        facts: JSON values by name.
    """
    import onnx

    proto = onnx.load_model_from_string(model)
    proto.doc_string = description
    del proto.metadata_props[:]
    proto.metadata_props.add(key=METADATA_KEY, value=json.dumps(facts))
    return bytes(proto.SerializeToString())


def exported_facts(model: bytes) -> dict[str, Any]:
    """Return the facts that `set_metadata` wrote into a model; nothing where they are missing or damaged."""
    import onnx

    return read_metadata(onnx.load_model_from_string(model))


def read_metadata(proto: Any) -> dict[str, Any]:
    """Return what `exported_facts` does, of an onnx.ModelProto."""
    for each in proto.metadata_props:
        if each.key == METADATA_KEY:
            with contextlib.suppress(ValueError, RecursionError):
                facts = json.loads(each.value)
                return facts if isinstance(facts, dict) else {}
    return {}


def require(*packages: str) -> None:
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
def silenced() -> Iterator[None]:
    """Suppress the translator's warnings and log lines: deprecations, and operators of packages that are missing."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
