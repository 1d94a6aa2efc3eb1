"""What a network costs where it runs: its size in bytes and its time at batch sizes 1 and 32."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from robustill.core.device import installed_version
from robustill.core.randomness import generator
from robustill.models.onnx import open_session

BATCH_SIZES = (1, 32)
_NUM_WARM_UP, _NUM_TIMED, _MAX_SECONDS = 5, 101, 1.0


def measure_model(model: bytes, image_shape: Sequence[int], *, num_bytes: int | None = None) -> dict[str, Any]:
    """Measure the time of an ONNX model on one thread of this machine's CPU.

    Args:
        model: it takes images [batch,C,H,W] in float32.
        image_shape: C, H and W.
        num_bytes: of its files; None is the size of `model`.

    Returns:
        As `measure`.

    Raises:
        ConfigError: onnxruntime is missing.
    """
    session = open_session(model, num_threads=1)
    (images,), fixed = session.get_inputs(), session.get_inputs()[0].shape[0]
    # A model of one batch size is run several times for a larger batch.
    size = fixed if isinstance(fixed, int) else None

    def run(x: np.ndarray[Any, Any]) -> None:
        for start in range(0, len(x), size or len(x)):
            part = x[start : start + (size or len(x))]
            if size is not None and len(part) < size:
                part = np.resize(part, (size, *part.shape[1:]))
            session.run(None, {images.name: part})

    return measure(run, image_shape, num_bytes=len(model) if num_bytes is None else num_bytes, runtime=runtime_name())


def runtime_name() -> str:
    """Return what runs ONNX models, with its version."""
    return f"onnxruntime {installed_version('onnxruntime')}, CPU"


def measure(
    run: Callable[[np.ndarray[Any, Any]], Any], image_shape: Sequence[int], *, num_bytes: int, runtime: str
) -> dict[str, Any]:
    """Measure the time of a network on one thread.

    Args:
        run: computes the answers for images, float32 [B,C,H,W], on one thread.
        image_shape: C, H and W.
        num_bytes: the size of the network's files.
        runtime: what runs it.

    Returns:
        A JSON-able dict: bytes; milliseconds, for each batch size its median and its quartiles over `passes` passes;
        threads; and runtime.
    """
    milliseconds = {}
    for batch_size in BATCH_SIZES:
        x = torch.rand(batch_size, *image_shape, generator=generator(0, "deployment")).numpy()
        for _ in range(_NUM_WARM_UP):
            run(x)
        times: list[float] = []
        while len(times) < _NUM_TIMED and (sum(times) < _MAX_SECONDS or len(times) < 3):
            started = time.perf_counter()
            run(x)
            times.append(time.perf_counter() - started)
        low, median, high = (float(f"{1000 * each:.4g}") for each in np.quantile(times, [0.25, 0.5, 0.75]))
        milliseconds[str(batch_size)] = {"median": median, "quartiles": [low, high], "passes": len(times)}
    return {"bytes": num_bytes, "milliseconds": milliseconds, "threads": 1, "runtime": runtime}
