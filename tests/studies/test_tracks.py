"""The tracks of the board: fixed conditions, which options of a method leave alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustill.core.errors import ConfigError, RunError
from robustill.studies.tracks import CHECKPOINTS, TRACKS, check_code, keep_code, track_of, track_study


@pytest.mark.parametrize("track", TRACKS)
def test_every_network_of_a_track_has_averaged_weights_and_the_evaluation_of_the_track(track: str) -> None:
    study = track_study(track, "akd", overrides=["--method.alpha", "0.5"])
    assert len(study.seeds) == TRACKS[track].seeds
    assert {config.optim.ema for config in study.runs.values()} == {0.99}
    for seed in study.seeds:
        student = study.runs[f"seed-{seed}/akd-alpha-0.5"]
        assert student.method.options["alpha"] == 0.5
        assert student.teachers[0].spec == f"run:runs/board/{track}/seed-{seed}/teacher-0@best"
        request = study.evaluation(f"seed-{seed}/akd-alpha-0.5")
        assert request is not None
        assert (request.suite, request.num_images, request.checkpoints) == (
            TRACKS[track].suite,
            TRACKS[track].num_images,
            CHECKPOINTS,
        )
        assert study.evaluation(f"seed-{seed}/teacher-0") is None


def test_the_quarter_network_follows_the_schedule_that_overfits() -> None:
    config = track_study("quarter", "at").runs["seed-0/at"]
    assert (config.data.train_size, config.data.augmentation, config.attack.steps) == (10_000, ("crop", "flip"), 3)
    assert (config.optim.epochs, config.optim.schedule, config.optim.warmup) == (100, "multistep", 0)
    assert config.optim.milestones == (0.5, 0.75)


def test_settings_of_the_machine_are_free_and_those_of_the_track_are_not() -> None:
    study = track_study("small", "akd", overrides=["--data.root", "elsewhere", "--compute.device", "cpu"])
    assert study.command == "robustill board run akd --track small --seeds 3"
    assert {str(config.data.root) for config in study.runs.values()} == {"elsewhere"}
    with pytest.raises(ConfigError, match=r"the track small has optim.epochs 40, not 80: leave this setting out"):
        track_study("small", "akd", overrides=["--optim.epochs", "80"])
    with pytest.raises(ConfigError, match=r"the track small has optim.epochs 40, not 80: leave this setting out"):
        track_study("small", "akd", overrides=["--teacher.optim.epochs", "80"])


@pytest.mark.parametrize(
    "words", [("temperature", "2", "alpha", "0.5"), ("alpha", "0.5", "wrong_classes", "teacher", "temperature", "2")]
)
def test_the_runs_are_called_alike_however_the_options_are_given(words: tuple[str, ...]) -> None:
    options = [f"--method.{key}={value}" for key, value in zip(words[::2], words[1::2], strict=True)]
    study = track_study("digits", "akd", seeds=1, overrides=options)
    assert study.name == "digits-akd-alpha-0.5-temperature-2"
    assert study.rows == {"seed-0/at", "seed-0/akd-alpha-0.5-temperature-2"}


def test_the_baseline_is_a_row_of_its_own() -> None:
    assert list(track_study("digits", "at", seeds=1).runs) == ["seed-0/at"]


def test_a_definition_is_known_by_its_conditions_alone() -> None:
    prints = {track.fingerprint for track in TRACKS.values()}
    assert len(prints) == len(TRACKS)
    assert all(track.fingerprint == track.fingerprint for track in TRACKS.values())


def test_a_run_is_meant_for_the_track_of_its_data_and_network() -> None:
    for track in TRACKS:
        assert track_of(track_study(track, "at", seeds=1).runs["seed-0/at"].model_dump(mode="json")) == track
    with pytest.raises(RunError, match="no track trains lenet on mnist: expected resnet_2b2 on cifar10 "):
        track_of({"data": {"name": "mnist"}, "model": {"name": "lenet"}})


def test_changed_code_of_a_method_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "changing_method.py"
    file.write_text("from robustill.methods.at import AT\n\n\nclass Mine(AT):\n    pass\n")
    study = track_study("digits", "changing_method:Mine", folder=tmp_path / "runs")
    keep_code(study, "changing_method:Mine")
    keep_code(study, "changing_method:Mine")
    file.write_text(file.read_text() + "\n# another\n")
    for check in (
        lambda: keep_code(study, "changing_method:Mine"),
        lambda: check_code(study.folder, "changing_method:Mine"),
    ):
        with pytest.raises(RunError, match=r"the code of changing_method:Mine has sha256 .* began with .*: restore it"):
            check()
    check_code(study.folder, "akd")
