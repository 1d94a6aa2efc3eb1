"""The command that compares teachers before a student is trained: `teachers rank`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import cyclopts

from robustill.cli.parameters import RecipeName, TrustCode, check_options
from robustill.core.errors import printable

Candidates = Annotated[
    str,
    cyclopts.Parameter(
        allow_leading_hyphen=True,
        help="At least two candidates: run directories (their best epoch), run:DIR@last, robustbench:ID ...; an "
        "ensemble is several of them, separated by commas. Settings that replace those of the student's recipe may "
        "follow: --data.root DIR --threat linf:8/255 ...",
    ),
]


def rank(
    *candidates: Candidates,
    student: RecipeName,
    baselines: int = 3,
    baseline_epochs: int | None = None,
    num_images: int = 1000,
    seed: int = 0,
    out: Path = Path("teacher-ranking"),
    trust_code: TrustCode = None,
) -> None:
    """Rank teachers for a student by the robust accuracy that it is predicted to gain, before any student is trained.

    A few short trainings of the student's own network say which held-out
    training images no such network holds, and make the adversarial images
    that a student would show its teacher. Test images are never read; the
    same command resumes an interrupted one.

    Parameters
    ----------
    student
        The student's configuration without teachers: a recipe of `robustill list recipes`, or a .yaml file.
    baselines
        Number of short trainings.
    baseline_epochs
        Their epochs; by default a fifth of the student's, at most ten.
    num_images
        Largest number of held-out images, class-balanced.
    seed
        Random seed of the choice of images and of the attacks.
    out
        Folder for ranking.json and for what resumes the command; `robustill report RUNS --teachers FOLDER` shows it.
    """
    check_options(candidates, ["student", "baselines", "baseline_epochs", "num_images", "seed", "out"])
    from robustill.cli.tables import ranking_table
    from robustill.studies.candidates import rank_teachers

    num_specs = next((index for index, word in enumerate(candidates) if word.startswith("--")), len(candidates))
    ranking = rank_teachers(
        candidates[:num_specs],
        student,
        overrides=candidates[num_specs:],
        num_baselines=baselines,
        baseline_epochs=baseline_epochs,
        num_images=num_images,
        seed=seed,
        out=out,
        trust_code=trust_code or (),
    )
    ranking_table(ranking)
    print(f"wrote {printable(str(out / 'ranking.json'))}")
