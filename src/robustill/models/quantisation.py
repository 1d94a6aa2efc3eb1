"""Quantisation of an ONNX model to int8 after training, and how its answers differ from those in float32."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustill.core.errors import ModelError, first_line
from robustill.models.card import Quantisation
from robustill.models.onnx import import_onnxruntime, onnx_logits, require, silenced

_BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class HeldOutImages:
    """Images that a network was not trained on: some to calibrate an int8 model with, others to compare it on.

    Args:
        calibration: [N,C,H,W] in [0,1].
        x: the other images, [M,C,H,W] in [0,1].
        y: their labels, [M].
        source: where they come from, such as "held-out training images of digits, seed 0".
    """

    calibration: Tensor
    x: Tensor
    y: Tensor
    source: str


def quantised_model(model: bytes, images: Tensor) -> bytes:
    """Quantise an ONNX model to int8.

    The weights are QInt8 with a scale for each output channel and the activations QUInt8, with a QuantizeLinear and a
    DequantizeLinear around each operator (QDQ); the images and the logits stay float32.

    Args:
        model: images [batch,C,H,W] in float32 to logits, see `robustill.models.onnx.onnx_model`.
        images: those that the ranges of the activations are measured on, [N,C,H,W].

    Raises:
        ConfigError: onnx or onnxruntime is missing.
        ModelError: the model cannot be quantised.
    """
    require("onnx", "onnxruntime")
    import_onnxruntime()
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(torch.split(images, _BATCH_SIZE))

        def get_next(self) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.contiguous().numpy()}

    with tempfile.TemporaryDirectory() as folder, silenced():
        given, prepared, quantised = (Path(folder) / f"{name}.onnx" for name in ("given", "prepared", "quantised"))
        given.write_bytes(model)
        try:
            quant_pre_process(str(given), str(prepared))
            quantize_static(
                str(prepared),
                str(quantised),
                Batches(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        except Exception as error:  # Every operator can fail in its own way.
            raise ModelError(f"the network cannot be quantised to int8: {first_line(error)}") from None
        return quantised.read_bytes()


def compare_quantised(model: bytes, quantised: bytes, images: HeldOutImages) -> Quantisation:
    """Compare the answers of an int8 model with those of the model that it was made from, on held-out images.

    Raises:
        ModelError: the int8 model gives NaN or infinite logits.
    """
    expected, found = (
        torch.cat([onnx_logits(each, batch) for batch in torch.split(images.x, _BATCH_SIZE)])
        for each in (model, quantised)
    )
    if not bool(found.isfinite().all()):
        raise ModelError("the int8 model gives NaN or infinite logits: look for activations of a huge range")
    predictions = expected.argmax(dim=1), found.argmax(dim=1)
    before, after = (float((each == images.y).float().mean()) for each in predictions)
    return Quantisation(
        calibration=f"{len(images.calibration)} {images.source}",
        num_compared=len(images.x),
        agreement=float((predictions[0] == predictions[1]).float().mean()),
        largest_change=float((found - expected).abs().max()),
        largest_logit=float(expected.abs().max()),
        clean_accuracy=(before, after),
        num_bytes=(len(model), len(quantised)),
    )
