"""Export of a network with what its images decide: the temperature of its logits, and the ranges of an int8 model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustill.core.validation import check_flag, check_path, check_type
from robustill.evaluation.held_out import held_out_images
from robustill.evaluation.temperature import fit_calibration
from robustill.models.card import Calibration
from robustill.models.export import export_network
from robustill.models.loading import LoadedNetwork


def export(
    spec: str,
    out: Path | str,
    *,
    calibrated: bool = False,
    int8: bool = False,
    data: Mapping[str, Any] | str | None = None,
    **settings: Any,
) -> tuple[LoadedNetwork, Calibration | None]:
    """Export a network as `robustill.models.export.export_network` does, which describes the files.

    Args:
        spec: a network as for `load_network`, such as "run:DIR@best".
        out: the .pt2 or .onnx file, or the folder, to write; it must not exist.
        calibrated: divide the logits by a temperature that is fitted on the validation images of the run.
        int8: quantise an .onnx file to int8, calibrated on validation images.
        data: for `int8`, the name of a data set, or settings of the configuration's data, such as {"name": "cifar10",
            "root": "data"}; the images of a run are its own.
        settings: shape, name, options, download and trust_code, as for `load_network`; progress, whether to say on
            stderr what takes long.

    Returns:
        The network as it was read back, and its temperature.

    Raises:
        RobustillError: as for `load_network`; `out` exists, the network cannot be written as such a file, or there
            are no validation images.
    """
    check_type("spec", spec, str, "a specification of load_network, such as 'run:runs/student'")
    for name, flag in (("calibrated", calibrated), ("int8", int8)):
        check_flag(name, flag)
    calibration = None
    if calibrated:
        trust = settings.get("trust_code", False)
        calibration = fit_calibration(spec, progress=bool(settings.get("progress")), trust_code=trust)
    values = {"name": data} if isinstance(data, str) else data
    images = held_out_images(spec, values) if int8 else None
    return export_network(spec, check_path("out", out), calibration=calibration, int8=images, **settings), calibration
