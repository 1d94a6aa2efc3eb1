"""The tracks of the board: fixed settings, seeds and attacks under which methods are compared, each a study."""

from __future__ import annotations

import hashlib
import inspect
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from robustill.config.recipes import resolve
from robustill.core.errors import ConfigError, RunError
from robustill.core.files import write_text
from robustill.core.formatting import slug
from robustill.core.links import read_regular_file
from robustill.core.user_code import import_user_module, names_code
from robustill.studies.scheduler import check_folder, locked
from robustill.studies.study import Study, make_study
from robustill.training.provenance import first_difference

BASELINE = "at"
"""The method that every row is compared with: PGD-AT, whose weights are averaged as those of every method."""

CHECKPOINTS = ("best-ema", "last-ema")
"""What is evaluated: the averaged weights of the best epoch on validation images, and of the last one."""


@dataclass(frozen=True, kw_only=True)
class Track:
    """The conditions of one track; every network, teachers included, is trained with averaged weights.

    Args:
        description: what is trained on what, for the page.
        recipe: the configuration of the baseline, by the name of a recipe.
        settings: settings that replace those of the recipe, for teachers and students.
        seeds: the smallest number of seeds of a row, counted from 0.
        suite: the attacks of the evaluation.
        num_images: number of test images in that evaluation, class-balanced; None for all.
    """

    description: str
    recipe: str
    seeds: int = 3
    settings: tuple[str, ...] = ("--optim.ema", "0.99")
    suite: str = "standard"
    num_images: int | None = None

    @property
    def fingerprint(self) -> str:
        """A checksum of all conditions: rows of another definition of the track are not compared with its own."""
        # Without the defaults, so that a new setting changes nothing.
        config = resolve(self.recipe, self.settings).model_dump(mode="json", exclude_defaults=True)
        conditions = {"config": config, "checkpoints": CHECKPOINTS, **asdict(self)}
        # More seeds, or other words, are the same conditions.
        del conditions["description"], conditions["seeds"]
        return hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()[:16]


TRACKS: dict[str, Track] = {
    "small": Track(
        description="a ResNet-2B2 (176,230 weights) on 5,000 images of CIFAR-10, l∞ 8/255, PGD-3, 40 epochs",
        recipe="cifar10_part_at",
        num_images=500,
    ),
    "quarter": Track(
        description="a ResNet-18 of a quarter of its width (701,466 weights) on 10,000 images of CIFAR-10 with crops "
        "and flips, l∞ 8/255, PGD-3, 100 epochs, the learning rate divided by 10 after 50 and 75",
        recipe="cifar10_quarter_at",
        num_images=1000,
    ),
    "digits": Track(
        description="a ResNet-8 (77,754 weights) on 250 digits of which a fifth have wrong labels, l∞ 0.15, PGD-10, 60 "
        "epochs: minutes a seed, without a download; what overfitting does to a method",
        recipe="digits_at",
    ),
}
"""The tracks by name."""


def track_study(
    track: str,
    method: str,
    *,
    folder: Path | None = None,
    seeds: int | None = None,
    overrides: Sequence[str] = (),
) -> Study:
    """Return the study of one method on a track: the baseline, the method, and the teachers that it needs.

    Args:
        track: a key of TRACKS.
        method: a method of `robustill list methods`, or my_pkg.my_mod:MyMethod.
        folder: the folder of the runs of the track, which all methods share; None for runs/board/TRACK.
        seeds: number of seeds, counted from 0; None for the track's.
        overrides: options of the method, as --method.alpha 0.5, and where it computes and reads its images.

    Raises:
        ConfigError: the method does not exist, or an override would change the track.
    """
    conditions = TRACKS[track]
    options = _method_options(overrides)
    words = [*conditions.settings, "--method", method]
    arguments: dict[str, Any] = {
        "folder": default_folder(track) if folder is None else folder,
        "seeds": conditions.seeds if seeds is None else seeds,
        "recipe": conditions.recipe,
        "suite": conditions.suite,
        "num_images": conditions.num_images,
    }
    fixed = make_study("entry", overrides=[*words, *options], **arguments)
    study = make_study("entry", overrides=[*words, *overrides], **arguments)
    for name, config in study.runs.items():
        difference = first_difference(fixed.runs[name].model_dump(mode="json"), config.model_dump(mode="json"))
        if difference is not None:
            key, there, here = difference
            raise ConfigError(f"the track {track} has {key} {there!r}, not {here!r}: leave this setting out")
    command = ["robustill", "board", "run", method, *options, "--track", track, "--seeds", str(len(study.seeds))]
    name = f"{track}-{study.design.rows[-1].run}"
    return replace(study, name=name, command=shlex.join(command), checkpoints=CHECKPOINTS)


def default_folder(track: str) -> Path:
    """Return the default folder of the runs of a track."""
    return Path("runs") / "board" / track


def _method_options(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that are options of the method, as a name and a value each."""
    options: list[str] = []
    rest = list(overrides)
    while rest:
        name, equals, text = rest.pop(0).partition("=")
        value = text if equals or not rest else rest.pop(0)
        if name.startswith("--method."):
            options += [name, value]
    return options


def track_of(config: Mapping[str, Any]) -> str:
    """Return the track that a run's configuration can only be meant for: that of the same data and network.

    Raises:
        RunError: there is none.
    """
    run = (config["data"]["name"], config["model"]["name"])
    known = {}
    for name, track in TRACKS.items():
        own = resolve(track.recipe)
        known[own.data.name, own.model.name] = name
    if run not in known:
        expected = ", ".join(f"{model} on {data} ({name})" for (data, model), name in known.items())
        raise RunError(f"no track trains {run[1]} on {run[0]}: expected {expected}")
    return known[run]


# The code of a method.


def code_file(method: str) -> Path | None:
    """Return the file of a method that is the user's own code; None for one of this package.

    Raises:
        UntrustedCodeError: only a file names it.
        ConfigError: it cannot be imported.
    """
    if not names_code(method):
        return None
    try:
        file = inspect.getsourcefile(import_user_module(method))
    except ImportError as error:
        raise ConfigError(f"method {method} cannot be imported: {error}") from None
    if file is None:
        raise ConfigError(f"method {method} has no file of Python code: give one that has")
    return Path(file)


def code_sha256(method: str) -> str | None:
    """Return the checksum of the file of a user's own method; None for one of this package."""
    file = code_file(method)
    return None if file is None else hashlib.sha256(read_regular_file(file)).hexdigest()


def keep_code(study: Study, method: str) -> None:
    """Write the checksum of a user's own method beside its runs, or check that its code is still the same.

    Raises:
        RunError: the code has changed since its runs began, or the folder cannot be that of a study.
    """
    found = code_sha256(method)
    if found is None:
        return
    check_folder(study)
    file = _checksum_file(study.folder, method)
    with locked(study.folder):
        if not file.is_file():
            write_text(file, f"{found}\n")
    check_code(study.folder, method)


def check_code(folder: Path, method: str) -> None:
    """Check that the code of a method is that which its runs began with.

    Raises:
        RunError: it is another.
    """
    found, file = code_sha256(method), _checksum_file(folder, method)
    began = read_regular_file(file).decode().strip() if file.is_file() else None
    if found != began:
        raise RunError(
            f"the code of {method} has sha256 {found}, and its runs in {folder} began with {began}: restore it, or run "
            "it in another folder (--runs)"
        )


def _checksum_file(folder: Path, method: str) -> Path:
    return folder / f"{slug(method)}.sha256"
