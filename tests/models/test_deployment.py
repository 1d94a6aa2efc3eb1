"""Size and latency: the quartiles of measured times, at batch sizes 1 and 32, on one thread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.evaluation_cases import trained
from helpers.onnx_files import onnx_file
from robustill.core.formatting import describe_deployment
from robustill.models import deployment
from robustill.models.deployment import measure, measure_model
from robustill.models.onnx import open_session


def test_quartiles_are_those_of_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    clock = {"now": 0.0}

    def run(x: np.ndarray[Any, Any]) -> None:
        assert x.shape[1:] == (3, 4, 5)
        assert x.dtype == np.float32
        sizes.append(len(x))
        # Passes take 1, 2, ..., 5 ms again and again.
        clock["now"] += 1e-3 * (1 + len(sizes) % 5)

    monkeypatch.setattr(deployment.time, "perf_counter", lambda: clock["now"])
    found = measure(run, (3, 4, 5), num_bytes=1234, runtime="by hand")
    assert sizes.count(1) == sizes.count(32) == 5 + 101
    for each in found["milliseconds"].values():
        assert (each["median"], each["quartiles"]) == (3.0, [2.0, 4.0])
    assert (found["bytes"], found["threads"], found["runtime"]) == (1234, 1, "by hand")
    assert describe_deployment(found) == (
        "1,234 bytes; 3 ms at batch 1 (quartiles 2–4); 3 ms at batch 32 (quartiles 2–4); 1 thread, by hand"
    )


def test_a_slow_network_is_timed_for_about_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 0.0}

    def run(x: np.ndarray[Any, Any]) -> None:
        clock["now"] += 10.0

    monkeypatch.setattr(deployment.time, "perf_counter", lambda: clock["now"])
    found = measure(run, (1, 8, 8), num_bytes=1, runtime="by hand")
    assert [each["passes"] for each in found["milliseconds"].values()] == [3, 3]


def test_a_file_of_one_batch_size_is_run_as_often_as_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = onnx_file(tmp_path / "net.onnx", trained().eval(), batch=5).read_bytes()
    sizes: list[int] = []
    session = open_session(content)

    class Counting:
        get_inputs = session.get_inputs

        def run(self, outputs: None, inputs: dict[str, np.ndarray[Any, Any]]) -> None:
            sizes.append(len(inputs["images"]))
            session.run(outputs, inputs)

    monkeypatch.setattr(deployment, "open_session", lambda model, num_threads: Counting())
    found = measure_model(content, (1, 6, 6), num_bytes=99)
    assert found["bytes"] == 99
    passes = [found["milliseconds"][batch]["passes"] + 5 for batch in ("1", "32")]
    # 32 images take seven batches of five, the last one filled up.
    assert sizes == [5] * (passes[0] + 7 * passes[1])
