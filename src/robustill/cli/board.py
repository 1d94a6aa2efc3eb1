"""The commands for the board, where methods are compared under fixed conditions: `board run`, `add` and `show`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import cyclopts

from robustill.cli.parameters import TrustCode, check_options, completing
from robustill.core.errors import RobustillError, printable
from robustill.core.user_code import only_named

TrackName = Literal["small", "quarter", "digits"]
EntryOverrides = Annotated[
    str,
    cyclopts.Parameter(
        allow_leading_hyphen=True,
        help="Options of the method, --method.KEY VALUE, and where the images are and what computes: --data.root, "
        "--data.download, --compute.device, --compute.threads. The track fixes everything else.",
    ),
]

board = cyclopts.App(name="board", help="Compare a method with others under fixed conditions, on a board.")


@board.command
def run(
    method: Annotated[str, cyclopts.Parameter(completer=completing("methods"))],
    /,
    *overrides: EntryOverrides,
    track: TrackName,
    seeds: int | None = None,
    workers: int | None = None,
    runs: Path | None = None,
) -> None:
    """Train and evaluate a method as a track prescribes, beside PGD-AT; the same command resumes it.

    Parameters
    ----------
    method
        A method of `robustill list methods`, or your own class: my_methods:Mine, of the file my_methods.py here.
    track
        small and quarter are on CIFAR-10, hours on one core; digits needs no download and takes minutes.
    seeds
        Number of seeds, counted from 0; by default the fewest that a row may have.
    workers
        Number of runs at a time; by default as many as the CPU cores or GPUs allow.
    runs
        Folder for the runs, which all methods share; by default runs/board/TRACK.
    """
    check_options(overrides, ["track", "seeds", "workers", "runs"])
    from robustill.cli.study_tables import print_results
    from robustill.studies.scheduler import make_workers, run_study
    from robustill.studies.tracks import keep_code, track_study

    planned = track_study(track, method, folder=runs, seeds=seeds, overrides=overrides)
    threads_given = any(word.partition("=")[0] == "--compute.threads" for word in overrides)
    shared = make_workers(planned, workers=workers, threads_given=threads_given)
    keep_code(planned, method)
    result = run_study(planned, shared)
    print_results(planned, result)
    if any(outcome.error for outcome in result.outcomes.values()):
        sys.exit(1)
    entry = planned.design.rows[-1].run
    paths = [str(planned.folder / planned.run_of(seed, planned.design.rows[-1])) for seed in planned.seeds]
    words = ["robustill", "board", "add", *paths] + (["--trust-code", method] if ":" in method else [])
    print(f"next, the row of {printable(entry)}: {printable(shlex.join(words))}")


@board.command
def add(
    *runs: Path,
    track: TrackName | None = None,
    board: Path = Path("docs/board"),
    trust_code: TrustCode = None,
) -> None:
    """Write the rows of runs that have the conditions of a track, one file a method; the same runs give the same bytes.

    Runs of other conditions are refused, each method in one line; the rows of the others are written.

    Parameters
    ----------
    runs
        Run directories of `robustill board run`, all seeds of a method; or the folder of a track, for all its methods.
    track
        By default the track of the same data and network.
    board
        Folder of the rows.
    """
    from robustill.studies.board import entries_in, make_row, write_row

    if not runs:
        raise RobustillError("no runs are given: name those of `robustill board run`, such as runs/board/digits")
    with only_named(trust=trust_code or ()):
        refused = []
        for (folder, name), seeds in entries_in(runs).items():
            try:
                row, file_name = make_row(folder, name, seeds, track)
                print(f"{printable(row.name)}: {printable(str(write_row(board, row, file_name)))}")
            except RobustillError as error:
                refused.append(error)
    for each in refused[:-1]:
        print(f"robustill: {each}", file=sys.stderr)
    if refused:
        raise refused[-1]


@board.command
def show(*, track: TrackName | None = None, board: Path = Path("docs/board")) -> None:
    """Print the table of a track, or of all tracks that have rows.

    Parameters
    ----------
    track
        By default all tracks that have rows.
    board
        Folder of the rows.
    """
    from robustill.cli.study_tables import print_board
    from robustill.studies.board import read_rows
    from robustill.studies.tracks import TRACKS

    rows = {name: read_rows(board, name) for name in TRACKS if track in (None, name)}
    if not any(rows.values()):
        raise RobustillError(f"{board} has no row" + ("" if track is None else f" of the track {track}"))
    for name, of_track in rows.items():
        if of_track:
            print_board(name, of_track)
