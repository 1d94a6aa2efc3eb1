"""The built-in studies are valid grids of runs, and impossible studies are refused."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from robustill.config.schema import Config
from robustill.core.errors import ConfigError
from robustill.methods import METHODS
from robustill.studies import STUDIES, Design, Row, Study, StudyRuns, default_folder, make_study
from robustill.studies.design import EvaluationRequest

OF_NO_METHOD = ("attack-steps", "methods", "why-early-stopping")
DISTILLING = ("akd", "ard", "rslad")
HERE = Path("runs/x")


def ready(name: str, method: str = "akd", *more: str, seeds: int = 2, recipe: str = "digits_at") -> Study:
    words = more if name in OF_NO_METHOD else ("--method", method, *more)
    return make_study(name, folder=HERE, seeds=seeds, recipe=recipe, overrides=words)


def of_seed(study: Study, seed: int = 0) -> dict[str, Config]:
    prefix = f"seed-{seed}/"
    return {name.removeprefix(prefix): config for name, config in study.runs.items() if name.startswith(prefix)}


def swept(study: Study) -> dict[float, Config]:
    """The configuration at each value of the curve, of seed 0."""
    points = [row for row in study.design.rows if row.value is not None]
    return {row.value: study.runs[study.run_of(0, row)] for row in points if row.value is not None}


@pytest.mark.parametrize("method", DISTILLING)
@pytest.mark.parametrize("name", STUDIES)
def test_every_builtin_study_is_a_valid_grid(name: str, method: str) -> None:
    study = ready(name, method)
    assert study == ready(name, method)
    labels = [row.label for row in study.design.rows]
    assert len(set(labels)) == len(labels)
    assert all(row.against in labels for row in study.design.rows if row.against is not None)
    assert {row.against for row in study.design.rows} >= {None}
    assert study.rows <= study.runs.keys()
    # No run waits for itself, in however many steps.
    finished: set[str] = set()
    while len(finished) < len(study.runs):
        able = {run for run in study.runs if run not in finished and finished.issuperset(study.needs[run])}
        assert able
        finished |= able
    # What a teacher is for: every run that is no row is needed.
    needed = {need for needs in study.needs.values() for need in needs}
    assert study.runs.keys() - study.rows - study.subsets <= needed
    assert study.description.endswith(".")
    assert method in study.name or name in OF_NO_METHOD


@pytest.mark.parametrize("name", STUDIES)
def test_a_seed_determines_all_randomness(name: str) -> None:
    study = ready(name)
    first, second = of_seed(study, 0), of_seed(study, 1)
    assert first.keys() == second.keys()
    for run in first:
        assert first[run].seed != second[run].seed
        assert (first[run].data.split_seed, second[run].data.split_seed) == (0, 1)
        assert not any("seed-1" in teacher.spec for teacher in first[run].teachers)
    seeds = [config.seed for run, config in study.runs.items() if "/teacher" in run and "eps" not in run]
    assert len(set(seeds)) == len(seeds) or name == "label-noise"


@pytest.mark.parametrize("recipe", ["digits_at", "cifar10_at_resnet8"])
def test_studies_never_give_one_name_to_two_runs(recipe: str) -> None:
    known: dict[str, Config] = {}
    shared = 0
    for name in STUDIES:
        for method in DISTILLING[: 1 if name in OF_NO_METHOD else None]:
            for run, config in ready(name, method, recipe=recipe).runs.items():
                shared += run in known
                assert known.setdefault(run, config) == config, run
    assert shared > 50


def test_alpha_sweeps_the_mixing_weight_of_each_method() -> None:
    assert {key: config.method.options["alpha"] for key, config in swept(ready("alpha")).items()} == {
        key: key for key in (0.2, 0.4, 0.6, 0.8, 1.0)
    }
    for method in ("ard", "rslad"):
        found = {key: config.method.options["mix"] for key, config in swept(ready("alpha", method)).items()}
        assert found == {key: key for key in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)}


def test_every_epoch_that_a_student_uses_is_saved() -> None:
    study = ready("teacher-age")
    teacher = of_seed(study)["teacher-0"]
    assert teacher.keep_every is not None
    assert teacher.validation.patience is None
    asked = {config.teachers[0].spec.partition("@")[2] for config in of_seed(study).values() if config.teachers}
    epochs = {int(age.removeprefix("epoch-")) for age in asked - {"best", "last"}}
    assert asked >= {"best", "last"}
    assert epochs == {age for age in range(1, teacher.optim.epochs) if age % teacher.keep_every == 0}
    assert sorted(swept(study)) == [*sorted(epochs), teacher.optim.epochs]


def test_a_teacher_of_two_epochs_has_one_earlier_epoch() -> None:
    assert sorted(swept(ready("teacher-age", "akd", "--optim.epochs", "2"))) == [1, 2]
    assert sorted(swept(ready("ensemble-ages", "akd", "--optim.epochs", "2"))) == [1, 2]
    assert sorted(swept(ready("teacher-age", "akd", "--optim.epochs", "1"))) == [1]


@pytest.mark.parametrize("name", ["ensemble-seeds", "ensemble-ages"])
def test_ensembles_grow_by_one(name: str) -> None:
    specs = {key: [each.spec for each in config.teachers] for key, config in swept(ready(name)).items()}
    assert sorted(specs) == [1, 2, 3, 4, 5]
    for number in range(1, 5):
        assert specs[number + 1][:-1] == specs[number]
    folders = {spec.partition("@")[0] for spec in specs[5]}
    assert len(folders) == (5 if name == "ensemble-seeds" else 1)


@pytest.mark.parametrize("recipe", ["digits_at", "cifar10_at_resnet8"])
def test_teachers_of_every_radius(recipe: str) -> None:
    study = ready("teacher-eps", recipe=recipe)
    for share, config in swept(study).items():
        (need,) = study.needs[next(name for name, each in study.runs.items() if each is config)]
        teacher = study.runs[need]
        assert teacher.threat.eps == pytest.approx(share * config.threat.eps)
        assert teacher.attack.step_size == pytest.approx(share * config.attack.step_size)
        assert (teacher.attack.steps > 0) == (share > 0)
        assert teacher.model == config.model


@pytest.mark.parametrize("method", DISTILLING)
def test_guidelines_shares_its_runs_with_other_studies(method: str) -> None:
    study = ready("guidelines", method)
    more = {
        run: config
        for name in ("teacher-age", "ensemble-seeds", "teacher-eps")
        for run, config in ready(name, method).runs.items()
    }
    more |= ready("methods").runs
    # The compute of another method's student is another number of epochs.
    assert all(more[run] == config for run, config in study.runs.items() if run in more or "at-epochs-" not in run)
    against = {row.run: row.against for row in study.design.rows}
    labels = {row.run: row.label for row in study.design.rows}
    assert against.pop("at") is None
    (longer,) = [run for run in against if run.startswith("at-epochs-")]
    assert {against.pop(rival) for rival in ("at-smoothing", "akd-self-best", longer, "trades", method)} == {"at"}
    assert list(against) == [f"{method}-{tag}" for tag in ("age-last", "seeds-3", "teacher-eps-1", "teacher-eps-0")]
    assert set(against.values()) == {labels[method]}


def test_a_cheaper_adversary_differs_in_its_steps_alone() -> None:
    study = ready("attack-steps")
    baseline = study.runs["seed-0/at"]
    sizes = {config.attack.steps: config.attack.step_size / config.threat.eps for config in swept(study).values()}
    assert sizes == pytest.approx({steps: 1.25 if steps == 1 else 2.5 / steps for steps in sizes})
    assert max(sizes) < baseline.attack.steps
    for config in study.runs.values():
        same = config.model_copy(update={"attack": baseline.attack, "seed": 0, "data": baseline.data})
        assert same == baseline
    growing = study.runs["seed-0/at-steps-growing"].attack
    assert (growing.first_steps, growing.steps) == (1, baseline.attack.steps)


def test_all_methods_have_the_same_budget() -> None:
    runs = of_seed(ready("methods"))
    assert METHODS.keys() <= runs.keys()
    for method in METHODS:
        config = runs[method]
        same = {"optim", "data", "model", "threat", "attack", "seed"}
        differs = {key for key in same if getattr(config, key) != getattr(runs["at"], key)}
        assert differs <= ({"optim"} if method in ("kdswa", "saad", "adr", "rebat") else set())
        assert {each.spec.rpartition("/")[2] for each in config.teachers if each.role == "robust"} <= {"teacher-0@best"}


def test_the_longer_baseline_has_the_passes_of_akd_and_its_teacher() -> None:
    study = ready("guidelines", "akd", "--optim.epochs", "10", "--attack.steps", "3")
    (longer,) = [config for run, config in of_seed(study).items() if run.startswith("at-epochs-")]
    # PGD-AT: 3 passes forward and backward for the attack, 1 for the loss; AKD: one more forward through its teacher.
    at, akd = 10 * (2 * 3 + 2), 10 * (2 * 3 + 2 + 1)
    assert longer.optim.epochs == round(10 * (akd + at) / at)
    plain = of_seed(study)["at"]
    assert longer.model_copy(update={"optim": plain.optim}) == plain


def test_students_that_learn_from_their_average_have_its_published_decay() -> None:
    decays = {method: of_seed(ready("methods"))[method].optim.ema for method in ("at", "adr", "rebat")}
    assert decays == {"at": None, "adr": 0.995, "rebat": 0.999}
    averaged = of_seed(ready("methods", "akd", "--optim.ema", "0.97"))
    assert {averaged[method].optim.ema for method in ("at", "adr", "rebat")} == {0.97}


@pytest.mark.parametrize(
    ("method", "words", "natural"),
    [("fair_ard", (), False), ("fair_ard", ("--method.base", "mtard"), True), ("absld", (), False)],
)
def test_students_have_the_teachers_that_their_options_ask_for(
    method: str, words: tuple[str, ...], natural: bool
) -> None:
    student = of_seed(ready("teacher-age", method, *words))[f"{method}-age-last"]
    roles = {each.spec.rpartition("/")[2]: each.role for each in student.teachers}
    assert roles == {"teacher-0@last": "robust", **({"teacher-0-eps-0@best": "natural"} if natural else {})}


@pytest.mark.parametrize("method", DISTILLING)
def test_students_of_every_width_have_one_teacher(method: str) -> None:
    study = ready("student-width", method, "--teacher.model.width", "32")
    baselines = {row.label: row for row in study.design.rows if row.against is None}
    assert sorted(row.value for row in baselines.values() if row.value is not None) == [4, 8, 16]
    for row in study.design.rows:
        config = study.runs[study.run_of(0, row)]
        assert config.model.options["width"] == row.value
        assert config.method.name == ("at" if row.against is None else method)
        if row.against is not None:
            assert study.needs[study.run_of(0, row)] == ("seed-0/teacher-0-eps-1",)
            assert baselines[row.against].value == row.value
    teacher = study.runs["seed-0/teacher-0-eps-1"]
    assert (teacher.model.options["width"], teacher.threat.eps) == (32, study.runs["seed-0/at"].threat.eps)
    # And no other is trained.
    assert [name for name in of_seed(study) if name.startswith("teacher")] == ["teacher-0-eps-1"]
    assert of_seed(study)["at"] == of_seed(ready("alpha"))["at"]


def test_the_width_of_a_mobilenet_is_a_share_of_the_published_one() -> None:
    study = ready("student-width", "akd", "--model", "mobilenetv2")
    assert {row.value for row in study.design.rows} == {0.25, 0.5, 1.0}
    assert {"at-width-0.25", "at-width-0.5", "at"} <= of_seed(study).keys()
    assert of_seed(study)["at-width-0.25"].model.options["width"] == 0.25


def test_student_and_teacher_have_the_same_noise() -> None:
    study = ready("label-noise")
    baselines = {row.label: row for row in study.design.rows if row.against is None}
    for row in study.design.rows:
        run = study.run_of(0, row)
        noise = study.runs[run].data.label_noise
        assert noise == row.value
        assert all(study.runs[need].data.label_noise == noise for need in study.needs[run])
        if row.against is not None:
            assert study.runs[study.run_of(0, baselines[row.against])].data.label_noise == noise


def test_memorisation_leaves_each_fold_out_of_teachers_too() -> None:
    study = ready("memorisation", "rslad", "--study.folds", "4", "--study.partitions", "2")
    runs = of_seed(study)
    assert [each.row for each in study.design.subsets] == ["at", "rslad"]
    for subsets in study.design.subsets:
        assert [(runs[run].data.folds, runs[run].data.fold) for run in subsets.runs] == [(4, fold) for fold in range(8)]
        assert len({runs[run].seed for run in subsets.runs}) == 8
        for run in subsets.runs:
            assert study.evaluation(f"seed-0/{run}") == EvaluationRequest(suite="pgd-20", split="pool")
            for need in study.needs[f"seed-0/{run}"]:
                assert study.runs[need].data == runs[run].data
    pairs = zip(*(subsets.runs for subsets in study.design.subsets), strict=True)
    assert all(runs[first].seed == runs[second].seed for first, second in pairs)
    assert all(study.runs[name].data.fold is None for name in study.rows)
    assert len(study.runs) == 2 * (3 + 3 * 8)


def test_overrides_apply_to_the_runs_that_they_name() -> None:
    words = ("--optim.epochs", "7", "--method.alpha", "0.5", "--threat", "linf:0.2")
    words += ("--model.width", "8", "--teacher.model.width=32")
    runs = of_seed(ready("teacher-age", "akd", *words))
    assert {config.optim.epochs for config in runs.values()} == {7}
    widths = {name: config.model.options["width"] for name, config in runs.items()}
    assert widths == {name: 32 if name.startswith("teacher") else 8 for name in runs}
    assert runs["akd"].method.options == {"alpha": 0.5, "temperature": 1.0, "wrong_classes": "teacher"}
    assert (runs["at"].threat.eps, runs["teacher-0"].threat.eps) == (0.2, pytest.approx(0.15))


def test_why_early_stopping_changes_what_one_teacher_says() -> None:
    study = ready("why-early-stopping")
    runs = {row.label: study.runs[study.run_of(0, row)] for row in study.design.rows[1:]}
    says = {
        label: (
            config.teachers[0].spec.partition("@")[2],
            config.method.options["temperature"],
            config.method.options["wrong_classes"],
        )
        for label, config in runs.items()
    }
    assert says == {
        "last epoch": ("last", 1, "teacher"),
        "best epoch": ("best", 1, "teacher"),
        "last epoch, temperature 2": ("last", 2, "teacher"),
        "last epoch, temperature 4": ("last", 4, "teacher"),
        "last epoch, wrong classes permuted": ("last", 1, "permuted"),
        "last epoch, wrong classes alike": ("last", 1, "even"),
        "best epoch, wrong classes permuted": ("best", 1, "permuted"),
        "best epoch, wrong classes alike": ("best", 1, "even"),
    }
    assert len({config.teachers[0].spec.partition("@")[0] for config in runs.values()}) == 1
    against = {row.label: row.against for row in study.design.rows}
    assert against["best epoch"] == against["last epoch, temperature 2"] == "last epoch"
    assert against["best epoch, wrong classes alike"] == "best epoch"


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("alhpa", [], "did you mean alpha"),
        ("alpha", ["--method", "adaad"], "does not mix teacher and label"),
        ("teacher-age", ["--method", "trades"], "has no robust teacher"),
        ("alpha", ["--method", "adk"], "did you mean akd"),
        ("teacher-age", ["--method.alpha", "7"], r"^alpha is 7, expected a number of at least 0"),
        ("entry", ["--method.alpha", "x"], r"^method akd: alpha is 'x'"),
        ("entry", ["--method.alhpa", "0.5"], r"^method akd has no option 'alhpa': did you mean alpha"),
        ("methods", ["--method", "akd"], "leave --method out"),
        ("alpha", ["--seed", "3"], "see --seeds"),
        ("alpha", ["--teachers", "run:x"], "leave --teachers out"),
        ("alpha", ["--data.split-seed=3"], "see --seeds"),
        ("alpha", ["--teacher.seed", "3"], "see --seeds"),
        ("alpha", ["--optim.epohcs", "3"], "did you mean epochs"),
        ("alpha", ["--teacher.model.widht", "3"], "did you mean width"),
        ("memorisation", ["--study.fold", "3"], "has no option 'fold': did you mean folds"),
        ("memorisation", ["--study.folds", "1"], "folds is 1, expected a whole number of at least 2"),
        ("memorisation", ["--study.folds", "two"], "folds is 'two', expected a whole number of at least 2"),
        ("memorisation", ["--study.partitions", "0"], "expected a whole number of at least 1"),
        ("memorisation", ["--data.folds", "3"], "leave --data.folds out"),
        ("student-width", ["--model", "lenet"], "lenet has no number as its width"),
        ("alpha", ["--study.folds", "3"], "it has no options of its own"),
        ("no_such_module:mine", [], "cannot be imported"),
        ("math:pi", [], "expected a function"),
    ],
)
def test_a_study_that_cannot_be_built_is_refused(name: str, words: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make_study(name, folder=HERE, overrides=words)


def test_impossible_recipes_numbers_and_suites_are_refused() -> None:
    with pytest.raises(ConfigError, match="has teachers, but a study chooses them"):
        make_study("alpha", folder=HERE, recipe="digits_akd")
    with pytest.raises(ConfigError, match="--seeds is 0"):
        make_study("alpha", folder=HERE, seeds=0)
    with pytest.raises(ConfigError, match="suite 'pdg' is unknown"):
        make_study("alpha", folder=HERE, suite="pdg")


def test_a_users_own_study() -> None:
    study = make_study("helpers.tiny_studies:pair", folder=HERE, seeds=1)
    assert study.name == "pair-akd"
    assert study.rows == {"seed-0/at", "seed-0/akd-alpha-0.5", "seed-0/akd-alpha-1"}
    assert default_folder("helpers.tiny_studies:pair") == Path("runs/pair")


OUTSIDE = {"spec": "wide.pth", "model": {"name": "cnn_a"}}


def _outside_teachers(runs: StudyRuns) -> Design:
    own = f"{runs.teacher()}@last"
    names = [runs.student(tag, teachers) for tag, teachers in (("outside", [OUTSIDE]), ("both", [own, OUTSIDE]))]
    longer = [runs.equal_compute(name) for name in names]
    return Design(rows=tuple(Row(label=name, run=name) for name in (*names, *longer)))


def test_a_teacher_of_a_users_own_study_may_come_from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])
    study = make_study("mine:_outside_teachers", folder=HERE, seeds=1)
    outside, both = (study.runs[f"seed-0/akd-{tag}"].teachers for tag in ("outside", "both"))
    assert [each.spec for each in outside] == ["wide.pth"]
    assert outside[0].model is not None
    assert outside[0].model.name == "cnn_a"
    assert [each.spec for each in both] == [f"run:{HERE}/seed-0/teacher-0@last", "wide.pth"]
    assert (study.needs["seed-0/akd-outside"], study.needs["seed-0/akd-both"]) == ((), ("seed-0/teacher-0",))
    # Its training is not ours: the student of the own teacher as well costs more epochs of the baseline.
    epochs = [study.runs[f"seed-0/{row.run}"].optim.epochs for row in study.design.rows[2:]]
    assert study.runs["seed-0/akd-outside"].optim.epochs <= epochs[0] < epochs[1]


def _one_alpha(runs: StudyRuns, *, alpha: float, label: str = "AKD") -> Design:
    return Design(rows=(Row(label=label, run=runs.student("mine", options={"alpha": alpha})),))


def test_a_users_own_study_has_options_of_any_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])
    words = ["--study.alpha", "0.25", "--study.label", "a quarter"]
    study = make_study("mine:_one_alpha", folder=HERE, seeds=1, overrides=words)
    assert study.design.rows[0].label == "a quarter"
    assert study.runs["seed-0/akd-mine"].method.options["alpha"] == 0.25
    with pytest.raises(ConfigError, match=r"needs a value of alpha: give --study\.alpha"):
        make_study("mine:_one_alpha", folder=HERE, seeds=1)


def _nothing(runs: StudyRuns) -> None:
    runs.baseline()


def _no_rows(runs: StudyRuns) -> Design:
    return Design(rows=())


def _no_such_run(runs: StudyRuns) -> Design:
    return Design(rows=(Row(label="at", run="at"),))


def _no_such_row(runs: StudyRuns) -> Design:
    return Design(rows=(Row(label="at", run=runs.baseline(), against="trades"),))


def _no_such_teacher(runs: StudyRuns) -> Design:
    return Design(rows=(Row(label="akd", run=runs.student("mine", ["teacher-7@best"])),))


def _one_label(runs: StudyRuns) -> Design:
    return Design(rows=(Row(label="akd", run=runs.student("")), Row(label="akd", run=runs.baseline())))


def _one_name(runs: StudyRuns) -> Design:
    for alpha in (0.2, 0.4):
        runs.student("mine", options={"alpha": alpha})
    return Design(rows=(Row(label="at", run=runs.baseline()),))


def _fails(runs: StudyRuns) -> Design:
    raise KeyError("lost\nand found")


def test_a_users_own_study_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])
    with pytest.raises(ConfigError, match=r"mine:_fails failed: KeyError: .* \(line [0-9]+ of .*test_study.py\)$"):
        make_study("mine:_fails", folder=HERE)
    (tmp_path / "broken_study.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"imported: ZeroDivisionError: .* \(line 1 of .*broken_study.py\)$"):
        make_study("broken_study:study", folder=HERE)


def test_the_command_of_a_study_can_be_pasted() -> None:
    study = make_study("alpha", folder=Path("user@lab/a b"), seeds=1, overrides=["--data.root", "a #b"])
    words = shlex.split(study.command)
    assert words[words.index("--runs") + 1] == "user@lab/a b"
    assert words[-2:] == ["--data.root", "a #b"]
    assert study.needs["seed-0/akd-alpha-0.2"] == ("seed-0/teacher-0",)


@pytest.mark.parametrize("trust", [True, "helpers.small_network:build", ["helpers.small_network:build"]])
def test_the_command_of_a_study_trusts_what_its_file_names(trust: bool | str | list[str], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("model: {name: 'helpers.small_network:build'}")
    study = make_study("alpha", folder=HERE, seeds=1, recipe=str(tmp_path / "a.yaml"), trust_code=trust)
    assert shlex.split(study.command)[-2:] == ["--trust-code", "helpers.small_network:build"]


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("_nothing", "returned None: expected a Design"),
        ("_no_rows", "expected a Design with at least one Row"),
        ("_no_such_run", "row 'at' is run 'at', which it did not add"),
        ("_no_such_row", "row 'at' is compared with 'trades', which is no row"),
        ("_no_such_teacher", "run 'akd-mine' learns from 'teacher-7', which the study did not add"),
        ("_one_label", "has two rows 'akd': give each its own label"),
        ("_one_name", "two runs of the study are called akd-mine: give each its own tag"),
    ],
)
def test_a_users_own_study_is_checked_before_it_runs(function: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])
    with pytest.raises(ConfigError, match=says):
        make_study(f"mine:{function}", folder=HERE)
