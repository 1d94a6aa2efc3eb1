import pytest

from helpers.made_up_runs import add_fixed_attack, make_run
from helpers.read_arms import read_runs
from robustill.analysis.calibration import apply_temperature, ece, fit_temperature
from robustill.report.temperature import temperature_sentences
from robustill.runs.records import Records


def test_the_temperature_is_fitted_on_validation_images_alone(tmp_path):
    names = ("test-best-pgd", "validation-best-pgd", "validation-last-pgd")
    (run,) = read_runs([make_run(tmp_path / "run", method={"name": "at"}, evaluations=names)])
    assert run.main.name == "test-best-pgd"
    clean, adversarial = temperature_sentences([run])
    assert clean.startswith("PGD-AT on clean images: ")
    validation = next(each.records for each in run.evaluations if each.name == "validation-best-pgd")
    t = fit_temperature(validation.adversarial_probabilities, validation.label)
    after = ece(apply_temperature(run.main.records.adversarial_probabilities, t), run.main.records.label)
    word = "overconfident" if t > 1 else "underconfident"
    assert adversarial == (
        f"PGD-AT on adversarial images: a temperature of {t:.2f}, fitted on 500 validation images where the "
        f"network is {word}, changes the ECE from {run.main.results['ece_adversarial']:.3f} to {after:.3f}."
    )


def test_where_both_have_the_fixed_attack_the_temperature_is_for_its_images(tmp_path):
    suite = {"name": "standard", "stages": [{"name": "apgd-ce", "steps": 100, "restarts": 1}]}
    (run,) = read_runs([add_fixed_attack(evaluated(tmp_path / "run", suite=suite))])
    clean, attacked = temperature_sentences([run])
    validation = next(each.records for each in run.evaluations if each.split == "validation")
    t = fit_temperature(validation.pgd_probabilities, validation.label)
    after = ece(apply_temperature(run.main.records.pgd_probabilities, t), run.main.records.label)
    assert clean.startswith("PGD-AT on clean images: ")
    # The suites differ, the images do not.
    assert attacked.startswith(f"PGD-AT on PGD-10 images: a temperature of {t:.2f}, fitted on 500 validation images wh")
    assert attacked.endswith(f"changes the ECE from {run.main.results['ece_pgd']:.3f} to {after:.3f}.")


def evaluated(folder, **conditions):
    """Write a run whose test images were evaluated with pgd, and its validation images under other conditions."""
    make_run(folder, method={"name": "at"}, evaluations=("test-best-pgd",))
    names = ("validation-best-pgd",)
    other = make_run(folder.with_name("other"), method={"name": "at"}, evaluations=names, **conditions)
    (other / "evaluations" / names[0]).rename(folder / "evaluations" / names[0])
    return folder


def test_any_suite_serves(tmp_path):
    suite = {"name": "standard", "stages": [{"name": "apgd-ce", "steps": 100, "restarts": 1}]}
    (run,) = read_runs([evaluated(tmp_path / "run", suite=suite)])
    clean, adversarial = temperature_sentences([run])
    assert "fitted on 500 validation images where" in clean
    assert "fitted on 500 validation images under standard where" in adversarial


def test_another_threat_serves_for_clean_images_alone(tmp_path):
    (run,) = read_runs([evaluated(tmp_path / "run", threat={"norm": "linf", "eps": 0.1, "text": "linf:0.1"})])
    clean, missing = temperature_sentences([run])
    assert clean.startswith("PGD-AT on clean images: a temperature of")
    assert missing == (
        f"PGD-AT, adversarial images: for a temperature run robustill evaluate {tmp_path / 'run'} --checkpoint best "
        "--split validation and report again."
    )


@pytest.mark.parametrize("names", [("test-best-pgd",), ("test-best-pgd", "validation-last-pgd")])
def test_without_validation_of_the_same_weights_the_command_for_it_is_given(tmp_path, names):
    (run,) = read_runs([make_run(tmp_path / "a run", method={"name": "at"}, evaluations=names)])
    (line,) = temperature_sentences([run])
    command = f"robustill evaluate '{tmp_path / 'a run'}' --checkpoint best --split validation"
    assert line == f"PGD-AT, clean images and adversarial images: for a temperature run {command} and report again."


def test_validation_images_are_not_scaled_by_themselves(tmp_path):
    (run,) = read_runs([make_run(tmp_path / "run", method={"name": "at"}, evaluations=("validation-best-pgd",))])
    assert Records.load(tmp_path / "run/evaluations/validation-best-pgd").conditions["split"] == "validation"
    assert list(temperature_sentences([run])) == []
