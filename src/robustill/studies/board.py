"""The rows of the board: what a method reached on a track, with all conditions, in one JSON file each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from robustill.analysis.method_names import method_name
from robustill.analysis.runs import training_seconds
from robustill.attacks.suites import find_suite
from robustill.config.schema import Config, make_config
from robustill.core.errors import RunError, first_line
from robustill.core.files import write_bytes, write_text
from robustill.core.links import read_regular_file
from robustill.runs.directory import RunDirectory
from robustill.runs.records import read_summary
from robustill.studies.cost import TrainingCompute, all_needs
from robustill.studies.job import finished_evaluations
from robustill.studies.study import Study, seed_folder
from robustill.studies.table import Correct, tabulate
from robustill.studies.tracks import BASELINE, TRACKS, check_code, code_file, code_sha256, track_of, track_study
from robustill.training.provenance import first_difference

DEFAULT_BOARD = Path("docs") / "board"
"""The folder of the rows in the repository."""

# What is kept of environment.json.
_ENVIRONMENT = ("python", "platform", "processor", "gpu", "cores", "threads", "versions")


@dataclass(frozen=True, kw_only=True)
class BoardRow:
    """One row: a method with its options on a track.

    Args:
        track: a key of TRACKS.
        track_fingerprint: of the track's definition when the row was made.
        method: the name of the method, or its import path.
        options: its options that differ from their defaults.
        name: its usual name, with its module where it is a user's own, and those options; no two rows share it.
        seeds: the seeds, 0 to n − 1.
        results: for each checkpoint and number of an evaluation, one value a seed.
        correct: for each checkpoint and accuracy, one text a seed: whether each test image is classified correctly,
            eight images a byte from the highest bit down, in hexadecimal digits.
        compute: 10⁹ floating-point operations of the training of one seed and of its teachers, counted; the seconds
            that both took, measured, one value a seed.
        conditions: images, attacks, versions and machines.
        fingerprints: checksums of the weights of the student and its teachers, one a seed, and of the method's code.
        command: the command line that repeats it.
    """

    track: str
    track_fingerprint: str
    method: str
    options: dict[str, Any]
    name: str
    seeds: list[int]
    results: dict[str, dict[str, list[float]]]
    correct: dict[str, dict[str, list[str]]]
    compute: dict[str, float | list[float]]
    conditions: dict[str, Any]
    fingerprints: dict[str, Any]
    command: str

    @property
    def is_baseline(self) -> bool:
        """Whether it is the row that the others of its track are compared with."""
        return self.method == BASELINE and not self.options

    def values(self, checkpoint: str, column: str) -> dict[int, float]:
        """Return a number of the evaluation of a checkpoint, by seed."""
        return dict(zip(self.seeds, self.results[checkpoint][column], strict=True))

    def flags(self, checkpoint: str, column: str) -> Correct:
        """Return which test images count in an accuracy at a checkpoint, by seed."""
        packed = [np.frombuffer(bytes.fromhex(text), np.uint8) for text in self.correct[checkpoint][column]]
        bits = [np.unpackbits(each, count=self.conditions["num_images"]).astype(bool) for each in packed]
        return dict(zip(self.seeds, bits, strict=True))


# The files.


def read_rows(board: Path, track: str) -> list[BoardRow]:
    """Return the rows of a track in the order of their files; none if there is no such folder.

    Raises:
        RunError: a file is damaged, or belongs to another definition of the track.
    """
    return _read_files(board, track, sorted(board.glob(f"{track}-*.json")))


def _read_files(board: Path, track: str, files: Iterable[Path]) -> list[BoardRow]:
    rows = [_read_row(file) for file in files]
    for row in rows:
        if row.track_fingerprint != TRACKS[track].fingerprint:
            raise RunError(f"{row.name} in {board} belongs to another definition of the track {track}: {row.command}")
    return rows


def _read_row(file: Path) -> BoardRow:
    try:
        return TypeAdapter(BoardRow).validate_json(read_regular_file(file))
    except (OSError, ValidationError) as error:
        raise RunError(f"{file} is no row of the board ({first_line(error)}): add the runs again") from None


def write_row(board: Path, row: BoardRow, name: str) -> Path:
    """Write a row, and beside it the file of a user's own method; a row of the same method is replaced.

    Args:
        board: the folder of the rows.
        row: the row.
        name: the name of its file, without a suffix.

    Raises:
        RunError: the board has rows of the track on other images.
    """
    file = board / f"{name}.json"
    # The row that is replaced may be damaged, or of an earlier version.
    for other in _read_files(board, row.track, sorted({*board.glob(f"{row.track}-*.json")} - {file})):
        there, here = (each.conditions["data_fingerprint"] for each in (other, row))
        if there != here:
            raise RunError(
                f"{row.name} was evaluated on images of fingerprint {here[:12]}, and {other.name} on {there[:12]}: "
                "give it the images of the track"
            )
    text = json.dumps(asdict(row), indent=1, sort_keys=True, ensure_ascii=False)
    write_text(file, text + "\n")
    code = code_file(row.method)
    if code is not None:
        write_bytes(file.with_suffix(".py"), read_regular_file(code))
    return file


# From runs to rows.


def entries_in(paths: Sequence[Path]) -> dict[tuple[Path, str], list[int]]:
    """Return the seeds of each method whose runs are named, by the folder of a track and the name of its runs.

    Args:
        paths: run directories, FOLDER/seed-N/NAME, or a FOLDER for all of its runs that were evaluated.

    Raises:
        RunError: a path is neither.
    """
    entries: dict[tuple[Path, str], list[int]] = {}
    for path in paths:
        for run in [path] if (path / "config.yaml").is_file() else _evaluated_runs(path):
            seed = RunDirectory.existing(run).config().get("data", {}).get("split_seed")
            if run.parent.name != seed_folder(seed):
                raise RunError(
                    f"{run} is no run of a track: expected FOLDER/seed-N/NAME, as `robustill board run` makes"
                )
            entries.setdefault((run.parent.parent, run.name), []).append(seed)
    return {entry: sorted(set(seeds)) for entry, seeds in entries.items()}


def _evaluated_runs(folder: Path) -> list[Path]:
    """Return the runs of a study that are rows of a table and have been finished."""
    runs = [
        run
        for run in sorted(folder.glob("seed-*/*"))
        if (run / "config.yaml").is_file() and (RunDirectory(run).read_json("study.json") or {}).get("evaluations")
    ]
    if not runs:
        raise RunError(f"{folder} holds no run that was evaluated: give run directories, or the folder of a track")
    return runs


def make_row(folder: Path, name: str, seeds: Sequence[int], track: str | None = None) -> tuple[BoardRow, str]:
    """Make a row from the runs of one method, after checking that they have the conditions of the track.

    Args:
        folder: the folder of the track's runs.
        name: the name of the method's runs in it.
        seeds: their seeds.
        track: a key of TRACKS; None for that of the same data and network.

    Returns:
        The row, and the name of its file.

    Raises:
        RunError: they have other conditions, or are not finished.
        UntrustedCodeError: the method is code that only the runs name.
    """
    names = [f"{seed_folder(seed)}/{name}" for seed in seeds]
    runs = [folder / each for each in names]
    config = make_config(RunDirectory.existing(runs[0]).config())
    track = track or track_of(config.model_dump(mode="json"))
    _check_seeds(folder / "seed-*" / name, seeds, track)
    method = config.method
    options = method.changed_options
    words = [word for key, value in options.items() for word in (f"--method.{key}", _as_yaml(value))]
    # The images are counted for the compute of a row: they lie where the runs found them.
    where = [] if config.data.root is None else ["--data.root", str(config.data.root)]
    study = track_study(track, method.name, folder=folder, seeds=len(seeds), overrides=[*words, *where])
    row = study.design.rows[-1]
    if row.run != name:
        raise RunError(f"the runs {folder}/seed-*/{name} are called {row.run} on the track {track}: {study.command}")
    for each in names:
        _check_run(study, track, each)
    check_code(folder, method.name)
    evaluations = [_evaluation(study, track, each) for each in names]
    lines = [result for result in tabulate(study).results if result.row == row]
    return BoardRow(
        track=track,
        track_fingerprint=TRACKS[track].fingerprint,
        method=method.name,
        options=options,
        name=row_name(config),
        seeds=list(seeds),
        results={
            line.checkpoint: {column: [values[seed] for seed in seeds] for column, values in line.values.items()}
            for line in lines
        },
        correct={
            line.checkpoint: {
                column: [np.packbits(correct[seed]).tobytes().hex() for seed in seeds]
                for column, correct in line.correct.items()
            }
            for line in lines
        },
        compute=_compute(study, names, lines[0].compute),
        conditions=_conditions(runs, evaluations),
        fingerprints={
            "weights": {
                checkpoint: [each[checkpoint]["checkpoint_sha256"] for each in evaluations]
                for checkpoint in evaluations[0]
            },
            "teachers": [_teachers(run) for run in runs],
            "code": code_sha256(method.name),
        },
        command=study.command,
    ), study.name


def row_name(config: Config) -> str:
    """Return the name of a configuration's row: two people's methods may have classes of one name.

    Example:
        >>> from robustill.config.schema import make_config
        >>> row_name(make_config({"method": {"name": "trades", "beta": 3.0}}))
        'TRADES + EMA, beta 3.0'
    """
    module, colon, _ = config.method.name.rpartition(":")
    usual = method_name(config.model_dump(mode="json"), "ema")
    options = [f"{key} {value}" for key, value in config.method.changed_options.items()]
    return ", ".join([f"{usual} ({module})" if colon else usual, *options])


def _as_yaml(value: Any) -> str:
    """Return the value of an option as a word of the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def _check_seeds(runs: Path, seeds: Sequence[int], track: str) -> None:
    smallest = TRACKS[track].seeds
    if list(seeds) != list(range(max(smallest, len(seeds)))):
        found = ", ".join(map(str, seeds))
        raise RunError(
            f"{runs} has the seeds {found}: the track {track} has at least 0 to {smallest - 1}, without gaps"
        )


def _check_run(study: Study, track: str, name: str) -> None:
    """Check that a run, and those that it needs, have the configuration that they have on the track."""
    stored = make_config(RunDirectory.existing(study.folder / name).config()).model_dump(mode="json")
    expected = study.runs[name].model_dump(mode="json")
    for values in (stored, expected):
        # The folder of a track may have been moved.
        values["teachers"] = [{**each, "spec": _within_study(each["spec"])} for each in values["teachers"]]
    difference = first_difference(stored, expected)
    if difference is not None:
        key, there, here = difference
        raise RunError(
            f"{study.folder / name} has {key} {there!r}, and the track {track} has {here!r}: a row has the conditions "
            f"of its track ({study.command})"
        )
    for need in study.needs[name]:
        _check_run(study, track, need)


def _within_study(spec: str) -> str:
    """Return a specification with the name of its run inside a study, such as run:seed-0/teacher-0@best."""
    kind, _, rest = spec.partition(":")
    return f"{kind}:{'/'.join(Path(rest).parts[-2:])}"


def _evaluation(study: Study, track: str, name: str) -> dict[str, dict[str, Any]]:
    """Return the conditions of the evaluation of each checkpoint, after checking that they are those of the track."""
    run, conditions = study.folder / name, TRACKS[track]
    folders = finished_evaluations(RunDirectory(run), study.evaluation(name))
    if folders is None:
        raise RunError(f"{run} was not evaluated as on the track {track}: {study.command}")
    found = {checkpoint: read_summary(folder)["conditions"] for checkpoint, folder in folders.items()}
    threat = study.runs[name].threat.build()
    num_classes = (RunDirectory(run).read_json("model.json") or {})["num_classes"]
    for each in found.values():
        expected = {
            "split": "test",
            "num_images": each["of_images"] if conditions.num_images is None else conditions.num_images,
            "threat": {"norm": threat.norm, "eps": threat.eps, "text": str(threat)},
            "suite": {"name": study.suite, "stages": find_suite(study.suite).describe(threat, num_classes)},
            "seed": 0,
        }
        for key, value in expected.items():
            # As JSON, which has no tuples.
            if json.dumps(each[key], sort_keys=True) != json.dumps(value, sort_keys=True):
                raise RunError(
                    f"{run} was evaluated with {key} {each[key]}, and the track {track} has {value}: {study.command}"
                )
    return found


def _conditions(runs: Sequence[Path], evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the common conditions of the evaluations, and all versions and machines, each once."""
    every = [each for by_checkpoint in evaluations for each in by_checkpoint.values()]
    shared = ("data", "data_fingerprint", "split", "num_images", "of_images", "threat", "suite", "seed", "precision")
    machines = [RunDirectory(run).read_json("environment.json") or {} for run in runs]
    return {
        **{key: every[0].get(key) for key in shared},
        "evaluated": _distinct({"date": each["date"], "versions": each["versions"]} for each in every),
        "trained": _distinct({key: each.get(key) for key in _ENVIRONMENT} for each in machines),
    }


def _distinct(values: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({json.dumps(each, sort_keys=True): each for each in values}.values())


def _teachers(run: Path) -> list[dict[str, Any]]:
    """Return the checkpoint, the role and the checksum of each teacher of a run."""
    teachers = (RunDirectory(run).read_json("teachers.json") or {"teachers": []})["teachers"]
    return [
        {"run": _within_study(each["spec"]).partition("/")[2], "role": each["role"], "sha256": each["sha256"]}
        for each in teachers
    ]


def _compute(study: Study, names: Sequence[str], counted: TrainingCompute) -> dict[str, float | list[float]]:
    """Return the counted operations of one seed, and the measured seconds of every seed."""

    def seconds(run: str) -> float:
        return training_seconds(RunDirectory(study.folder / run).metrics()) or 0.0

    return {
        "training_gflop": round(counted.own, 1),
        "teachers_gflop": round(counted.teachers, 1),
        "training_seconds": [round(seconds(name), 1) for name in names],
        "teachers_seconds": [round(sum(map(seconds, all_needs(study, name)), 0.0), 1) for name in names],
    }
