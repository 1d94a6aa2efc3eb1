from dataclasses import replace
from pathlib import Path

import pytest

from helpers.made_up_runs import make_run
from helpers.read_arms import read_arms
from robustill.analysis.arms import make_arms, same_task
from robustill.analysis.runs import StudyRow, read_run


def described(paths):
    return [(arm.name, [run.name for run in arm.runs]) for arm in read_arms(paths)]


def student(folder: Path, seed: int, **changes) -> Path:
    """Write a run of AKD from two teachers of its own seed, which lie beside it."""
    teachers = tuple(f"run:{folder.parent / f'teacher-{k}'}@best" for k in range(2))
    return make_run(folder, method={"name": "akd"}, teachers=teachers, seed=seed, **{"evaluations": (), **changes})


def test_runs_that_differ_in_their_seed_alone_are_one_arm(tmp_path):
    paths = []
    for seed in (0, 1):
        folder = tmp_path / f"seed-{seed}"
        data = {"data": {"name": "digits", "train_size": 250, "split_seed": seed}, "compute": {"threads": seed + 1}}
        paths.append(student(folder / "akd", seed, config=data))
        for k in range(2):
            number = 1000 + 100 * seed + k
            path = folder / f"teacher-{k}"
            paths.append(make_run(path, method={"name": "at"}, eps=0.15, seed=number, evaluations=(), config=data))
    assert described(paths) == [
        ("AKD", ["AKD, seed 0", "AKD, seed 1"]),
        ("PGD-AT teacher", [f"PGD-AT teacher, seed {seed}" for seed in (1000, 1001, 1100, 1101)]),
    ]
    assert [arm.is_teacher for arm in read_arms(paths)] == [False, True]


@pytest.mark.parametrize(
    "change",
    [
        {"method": {"name": "akd", "alpha": 0.5}},
        {"teachers": ("run:x/teacher-0@last",)},
        {"eps": 0.1},
        {"config": {"optim": {"epochs": 80}}},
        {"config": {"optim": {"ema": 0.99}}},
    ],
)
def test_any_other_difference_makes_another_arm(tmp_path, change):
    base = {"method": {"name": "akd"}, "teachers": ("run:x/teacher-0@best",), "evaluations": ()}
    paths = [make_run(tmp_path / "a", **base), make_run(tmp_path / "b", seed=1, **{**base, **change})]
    arms = read_arms(paths)
    assert len(arms) == 2
    assert len({arm.name for arm in arms}) == 2
    assert all("AKD" in arm.name for arm in arms)


def test_the_same_seed_twice_is_no_repetition(tmp_path):
    names = ("seed-0/akd", "seed-1/akd", "again", "more/again")
    seeds = (0, 1, 0, 0)
    paths = [
        make_run(tmp_path / n, method={"name": "at"}, seed=s, evaluations=()) for n, s in zip(names, seeds, strict=True)
    ]
    arms = described(paths)
    assert [len(runs) for _, runs in arms] == [2, 1, 1]
    assert [name for name, _ in arms] == [
        "PGD-AT (akd)",
        f"PGD-AT ({tmp_path / 'again'})",
        f"PGD-AT ({tmp_path / 'more/again'})",
    ]


def test_names_are_unique_and_printable(tmp_path):
    paths = [make_run(tmp_path / name, method={"name": "at"}, evaluations=()) for name in ("a", "b\x1b[31m")]
    assert [name for name, _ in described(paths)] == ["PGD-AT (a)", "PGD-AT (b\\x1b[31m)"]


def test_a_task_is_a_network_its_data_and_its_threat(two_runs, tmp_path):
    (akd, at), (other,) = read_arms(two_runs), read_arms([make_run(tmp_path / "o", method={"name": "at"}, eps=0.1)])
    assert same_task(akd.runs[0], at.runs[0])
    assert not same_task(akd.runs[0], other.runs[0])


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("TRADES", "TRADES"),
        ("TRADES with AWP", "TRADES with AWP"),
        ("alpha 0.5", "TRADES, alpha 0.5"),
        ("trades", "TRADES"),
    ],
)
def test_the_label_of_a_row_names_the_method_once(tmp_path: Path, label: str, name: str) -> None:
    run = read_run(make_run(tmp_path / "run", method={"name": "trades"}), "run")
    row = StudyRow(study="mine", label=label, against=None)
    assert [arm.name for arm in make_arms([replace(run, row=row)])] == [name]
