"""Which teacher for a student: candidates measured on held-out training images, before any student is trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustill.analysis.gain_model import load_gain_model
from robustill.analysis.teacher_ranking import NAME, RankedTeacher, TeacherRanking, predict_gains, rank
from robustill.config.recipes import resolve
from robustill.config.schema import Config, make_config
from robustill.config.split import load_validation
from robustill.core.device import configure_process
from robustill.core.errors import ConfigError, DataError, RunError, printable
from robustill.core.files import exclusive_lock
from robustill.core.user_code import TrustCode, only_named, paths_in
from robustill.core.validation import check_integer, check_path, check_seed, check_texts
from robustill.data import Dataset, stratified_subset
from robustill.evaluation.transfer import short_name
from robustill.models.loading import LoadedNetwork, Shape, check_names_itself, load_network
from robustill.studies.candidate_measures import MeasuredCandidates, Measuring
from robustill.studies.grid import Grid

OUT = Path("teacher-ranking")
"""The default folder of a ranking."""
MIN_IMAGES = 100
"""Held-out images below which a ranking is refused."""
# Of the short trainings: a fifth of the student's epochs, and seeds that no student is likely to have.
_EPOCH_SHARE, _MOST_EPOCHS, _FIRST_SEED = 0.2, 10, 1000


def rank_teachers(candidates: Sequence[str], student: Config | str, **settings: Any) -> TeacherRanking:
    """Rank candidate teachers for a student by the robust accuracy that it is predicted to gain from each.

    A few short PGD-AT trainings of the student's own network say which held-out images are robustly unlearnable, and
    make the adversarial images that a student would show its teacher. Test images are never read. The same call resumes
    an interrupted one.

    Args:
        candidates: at least two specifications of `load_network` that name their own network, or run directories, whose
            best epoch is used; an ensemble is several of them, separated by commas.
        student: the configuration of the student without its teachers, the name of a recipe, or a .yaml file.
        settings: out, the folder of the baselines, the measures and the ranking; overrides, settings that replace those
            of the recipe; num_baselines (3), the number of short trainings, and baseline_epochs; num_images (1000), the
            most held-out images to attack; seed, of their choice and of the attacks; progress; trust_code, as for
            `load_network`.

    Returns:
        The ranking, which is also written to ranking.json in the folder `out`.

    Raises:
        RobustillError: a candidate, a student, data or a setting that is missing or invalid.
    """
    measured = measure_candidates(candidates, student, **settings)
    model = load_gain_model()
    measures = list(measured.measures.values())
    others = measured.disagreement.sum(axis=1) / (len(measures) - 1)
    ranked = [
        RankedTeacher(
            name=short,
            measures=each,
            predictions=gains,
            disagreement=float(other),
            networks=[_describe(network) for network in measured.networks[name]],
        )
        for (name, each), short, gains, other in zip(
            measured.measures.items(),
            _short_names(list(measured.measures)),
            predict_gains(model, measures, measured.baselines),
            others,
            strict=True,
        )
    ]
    baselines = {
        "clean_accuracy": measured.baselines.clean_accuracy,
        "robust_accuracy": measured.baselines.robust_accuracy,
        "unlearnable": float(measured.baselines.unlearnable.mean()),
    }
    conditions = {**measured.conditions, "evidence": dict(model.evidence)}
    ranking = rank(ranked, measured.disagreement, baselines, conditions, measured.warnings)
    ranking.save(check_path("out", settings.get("out", OUT)))
    return ranking


def measure_candidates(
    candidates: Sequence[str],
    student: Config | str,
    *,
    out: Path | str = OUT,
    overrides: Sequence[str] = (),
    num_baselines: int = 3,
    baseline_epochs: int | None = None,
    num_images: int = 1000,
    seed: int = 0,
    progress: bool = True,
    trust_code: TrustCode = False,
) -> MeasuredCandidates:
    """Measure candidate teachers on held-out training images.

    Args:
        candidates: as for `rank_teachers`.
        student: as for `rank_teachers`.
        out: folder for the baselines, and for what resumes an interrupted call.
        overrides: settings that replace those of the recipe.
        num_baselines: number of short trainings.
        baseline_epochs: their epochs; None for a fifth of the student's, at most ten.
        num_images: the largest number of held-out images, class-balanced.
        seed: of the choice of images and of the attacks.
        progress: show an estimate of the time, and the progress.
        trust_code: as for `load_network`.

    Raises:
        RobustillError: as for `rank_teachers`.
    """
    names = check_texts("candidates", candidates, '["run:runs/a@best", "run:runs/b@best"]')
    out = check_path("out", out)
    overrides = check_texts("overrides", overrides, '["--data.root", "data"]')
    check_integer("num_baselines", num_baselines, at_least=1)
    check_integer("num_images", num_images, at_least=MIN_IMAGES)
    if baseline_epochs is not None:
        check_integer("baseline_epochs", baseline_epochs, at_least=1)
    check_seed(seed)
    _check_names(names)
    with only_named(*paths_in([*_members(names), *overrides]), trust=trust_code):
        config = student_config(student, overrides, trust_code)
        device = configure_process(config.compute)
        dataset, held_out = _load_held_out(config)
        shape = Shape.of(dataset)
        loaded = {name: [load_network(spec, shape=shape) for spec in _specs(name)] for name in names}
        grid = _baseline_grid(config, out, num_baselines, baseline_epochs)
        _check_folder(out)
        out.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(out / "lock", f"{out} is in use by another process: wait for it, or give another --out"):
            ids = stratified_subset(dataset.labels, min(num_images, len(dataset)), seed=seed)
            measuring = Measuring(config, dataset, held_out, ids, loaded, grid, out, seed, device)
            return measuring.run(progress)


def student_config(student: Config | str, overrides: Sequence[str] = (), trust_code: TrustCode = False) -> Config:
    """Return the configuration of a student that has no teachers yet.

    Raises:
        ConfigError: it has teachers of its own.
    """
    config = student if isinstance(student, Config) else resolve(student, tuple(overrides), trust_code=trust_code)
    if config.teachers:
        named = f"the recipe {student}" if isinstance(student, str) else "the student"
        raise ConfigError(
            f"{named} has teachers of its own ({printable(config.teachers[0].spec)}): give the recipe of its baseline, "
            "such as digits_at for digits_akd"
        )
    return config


def _check_names(names: Sequence[str]) -> None:
    if len(names) < 2:
        raise ConfigError(
            f"{len(names)} candidate: a ranking needs at least two; `robustill teachers check` measures one alone"
        )
    if len(set(names)) < len(names):
        raise ConfigError("a candidate is named twice: name each once")
    for spec in _members(names):
        check_names_itself(spec, "candidate")


def _members(names: Sequence[str]) -> list[str]:
    return [spec for name in names for spec in _specs(name)]


def _specs(name: str) -> list[str]:
    """Return the specifications of a candidate, several for an ensemble; a run directory stands for its best epoch."""
    parts = [part.strip() for part in name.split(",")]
    if not all(parts):
        raise ConfigError(f"candidate {name!r}: expected specifications separated by single commas")
    return [f"run:{part}@best" if (Path(part) / "config.yaml").is_file() else part for part in parts]


def _short_names(names: Sequence[str]) -> list[str]:
    """Return the last parts of the paths in each name; the names themselves where two would be the same."""
    short = [" + ".join(short_name(spec) for spec in name.split(",")) for name in names]
    return [printable(each) for each in (short if len(set(short)) == len(names) else names)]


def _load_held_out(config: Config) -> tuple[Dataset, dict[str, Any]]:
    """Load the validation images and their description, and check that they are enough."""
    dataset, held_out = load_validation(config)
    if len(dataset) < MIN_IMAGES:
        raise DataError(
            f"{len(dataset)} held-out images of {dataset.name}: expected at least {MIN_IMAGES}; hold more out with "
            f"--data.validation {MIN_IMAGES}"
        )
    return dataset, held_out


def _check_folder(out: Path) -> None:
    known = {NAME, "lock", "baselines", "parts"}
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file: give the name of a folder as --out")
    if out.is_dir() and not {each.name for each in out.iterdir() if not each.name.startswith(".")} <= known:
        raise RunError(f"{out} holds something else than a ranking: give a new or an empty folder as --out")


def _baseline_grid(config: Config, out: Path, num_baselines: int, epochs: int | None) -> Grid:
    """Return the short PGD-AT trainings of the student's network, with other seeds than the student's."""
    if epochs is None:
        epochs = max(1, min(_MOST_EPOCHS, round(_EPOCH_SHARE * config.optim.epochs)))
    values = config.model_dump(mode="json")
    values["method"] = {"name": "at"}
    values["optim"] |= {"epochs": epochs, "ema": None, "swa": None, "awp": None}
    # The last epoch is validated and kept; no other one is needed.
    values["validation"] |= {"every": epochs, "patience": None}
    values |= {"keep_every": None, "dynamics": {**values["dynamics"], "record": False}}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
    runs = {}
    for number in range(num_baselines):
        seed = (config.seed + _FIRST_SEED + number) % 2**64
        # Another student, or other settings, has baselines of its own.
        runs[f"baselines/{digest}-{number}"] = make_config({**values, "seed": seed})
    return Grid(name="baselines", folder=out, runs=runs)


def _describe(network: LoadedNetwork) -> dict[str, Any]:
    return {
        "spec": printable(network.spec),
        "sha256": network.sha256,
        "architecture": network.architecture,
        "trained": network.trained,
    }
