"""Export of a run in float32 and in int8 and the attack on both files, at the end of its job in a study."""

from __future__ import annotations

import json
from collections.abc import Iterator

from robustill.runs.directory import RunDirectory

FILES = {"float32": False, "int8": True}
"""The files of a run, and whether each is quantised."""

_FOLDER = "shipped"
# Settings of the data whose value is taken as it is written.
_TEXTS = ("name", "root", "extra")


def ship(run: RunDirectory, num_images: int) -> dict[str, str]:
    """Export the best epoch of a run, measure each file and attack it; what an earlier call did is not repeated.

    Args:
        run: a finished run. Where its weights were averaged, their average is exported.
        num_images: the largest number of test images, class-balanced.

    Returns:
        The folder of the records of each of FILES, inside the run directory.

    Raises:
        RobustillError: the network cannot be exported or attacked.
    """
    from robustill.evaluation.export import export
    from robustill.evaluation.targets import evaluate_file

    averages = [name for name in ("best-swa", "best-ema") if run.checkpoints.pointed(name) is not None]
    source = f"run:{run.path}@{averages[0] if averages else 'best'}"
    folder, found = run.path / _FOLDER, {}
    # Two processes that export the same file would attack different ones.
    with run.locked():
        for name, int8 in FILES.items():
            file = folder / f"{run.path.name}-{name}.onnx"
            if not file.exists():
                export(source, file, int8=int8)
            records = evaluate_file(
                file,
                out=folder / "evaluations",
                overrides=list(_settings(run)),
                suite="deployed",
                num_images=num_images,
                eps_curve=False,
                surrogate=source,
            )
            found[name] = str(next(iter(records)).relative_to(run.path))
    return found


def _settings(run: RunDirectory) -> Iterator[str]:
    """Yield the data, the threat and the device of a run as overrides."""
    config = run.config()
    for key, value in config["data"].items():
        if value is not None:
            yield f"--data.{key}={value if key in _TEXTS else json.dumps(value)}"
    for group, keys in (("threat", ("norm", "eps")), ("compute", ("device", "threads"))):
        yield from (f"--{group}.{key}={json.dumps(config[group][key])}" for key in keys)
