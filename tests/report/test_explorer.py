import base64
import io
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from helpers.made_up_runs import CIFAR_CLASSES, make_run
from helpers.read_arms import read_runs
from robustill.analysis.arms import make_arms
from robustill.analysis.difficulty import BINS, RADIUS_BINS, difficulty
from robustill.report import explorer as module
from robustill.report.comparison import compare
from robustill.report.dynamics import align_runs


def explore(runs):
    comparisons = compare(make_arms(runs))
    explorer = module.make_explorer(runs, comparisons, align_runs(runs, comparisons))
    return explorer, json.loads(explorer.data)


def pixels(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))), dtype=np.float64)


@pytest.fixture
def runs(two_runs):
    return read_runs(two_runs)


def test_every_picture_has_the_results_of_both_runs(runs):
    explorer, data = explore(runs)
    assert (explorer.num_saved, explorer.num_shown, len(data["images"])) == (16, 16, 16)
    assert data["runs"] == {"0": "AKD", "1": "PGD-AT"}
    assert (data["first"], data["second"]) == (0, 1)
    factor = data["sets"][0]["factor"]
    for i, image in enumerate(data["images"]):
        assert image["id"] == 1000 + i
        # The difficulty of a test image is the radius that breaks the baseline.
        reference = runs[1].main.records
        broken = "wrong without attack" if not reference.clean_correct[i] else "broken at "
        assert image["bin"].startswith("never" if reference.robust_at_eps[i].all() else broken)
        assert reference.robust[i] == (image["bin"] in ("broken at a larger radius", "never broken"))
        for number, run in enumerate(runs):
            records, result = run.main.records, image["runs"][str(number)]
            assert data["classes"][image["label"]] == records.classes[records.label[i]]
            assert (result["outcome"] == "robust") == records.robust[i]
            assert (result["outcome"] == "wrong without attack") == (
                records.clean_probabilities[i].argmax() != image["label"]
            )
            clean, adversarial = records.example_clean[i, 0], records.example_adversarial[i, 0]
            np.testing.assert_allclose(pixels(image["clean"]), 255 * clean, atol=0.51)
            np.testing.assert_allclose(pixels(result["adversarial"]), 255 * adversarial, atol=0.51)
            np.testing.assert_allclose(
                pixels(result["change"]), 255 * (0.5 + factor * (adversarial - clean)), atol=0.51
            )


def test_the_label_and_the_top_three_classes_are_shown(runs):
    _, data = explore(runs)
    records = runs[0].main.records
    for i, image in enumerate(data["images"]):
        shown = image["runs"]["0"]["top"]
        best = {
            int(k)
            for p in (records.clean_probabilities[i], records.adversarial_probabilities[i])
            for k in np.argsort(p)[-3:]
        }
        assert {k for k, _, _ in shown} == best | {image["label"]}
        for k, clean, attacked in shown:
            assert clean == pytest.approx(1000 * records.clean_probabilities[i, k], abs=0.51)
            assert attacked == pytest.approx(1000 * records.adversarial_probabilities[i, k], abs=0.51)
        assert [p for *_, p in shown] == sorted((p for *_, p in shown), reverse=True)


def test_filters_offer_only_values_that_occur(runs):
    explorer, data = explore(runs)
    assert explorer.robust == [
        ("both", "both"),
        ("first", "only AKD"),
        ("second", "only PGD-AT"),
        ("neither", "neither"),
    ]
    assert explorer.first_name == "AKD"
    assert {number for number, _ in explorer.classes} == {image["label"] for image in data["images"]}
    assert explorer.reference == "PGD-AT"
    assert {name for name, _ in explorer.bins} == {image["bin"] for image in data["images"]}
    assert [name for name, _ in explorer.outcomes] == [
        name
        for name in ("robust", "fooled", "wrong without attack")
        if any(result["outcome"] == name for image in data["images"] for result in image["runs"].values())
    ]


def test_a_single_run_has_no_second_run(runs):
    explorer, data = explore(runs[:1])
    assert (explorer.robust, explorer.second, data["second"]) == ([], None, None)


def test_the_baseline_is_second_in_any_order_of_the_runs(runs):
    _, data = explore(runs[::-1])
    assert (data["first"], data["second"]) == (1, 0)


def test_training_images_have_the_difficulty_of_the_data_map(tmp_path):
    run = make_run(
        tmp_path / "at", method={"name": "at"}, evaluations=("test-best-pgd", "train-best-pgd"), dynamics=500
    )
    runs = read_runs([run])
    explorer, data = explore(runs)
    assert [title.split(",")[1] for _, title in explorer.sets] == [" test images", " train images"]
    others = {image["bin"] for image in data["images"] if image["set"] == 0}
    assert others <= set(RADIUS_BINS)
    recorded = runs[0].dynamics
    bins = dict(zip(recorded.ids.tolist(), difficulty(recorded.adversarial), strict=True))
    shown = {image["id"]: image["bin"] for image in data["images"] if image["set"] == 1}
    assert shown == {i: BINS[bins[i]] if i in bins else None for i in range(1000, 1016)}
    assert [name for name, _ in explorer.bins] == [
        name for name in (*BINS, *RADIUS_BINS) if name in {*shown.values(), *others}
    ]


def test_each_attack_has_its_own_set(runs, tmp_path):
    other = make_run(tmp_path / "other", method={"name": "at"}, suite={"name": "standard"})
    explorer, data = explore([*runs, *read_runs([other])])
    assert len(explorer.sets) == 2
    assert Counter(frozenset(image["runs"]) for image in data["images"]) == {
        frozenset({"0", "1"}): 16,
        frozenset({"2"}): 16,
    }
    assert explorer.first_name == "the first run"


def test_different_pictures_with_one_id_are_not_merged(runs):
    records = runs[1].main.records
    moved = replace(records, example_clean=records.example_clean[::-1].copy())
    changed = replace(runs[1], evaluations=(replace(runs[1].main, records=moved),))
    _, data = explore([runs[0], changed])
    same = [np.array_equal(a, b) for a, b in zip(records.example_clean, moved.example_clean, strict=True)]
    assert ["1" in image["runs"] for image in data["images"]] == same


def test_there_is_no_explorer_without_pictures(runs):
    bare = replace(runs[0].main, records=runs[0].main.records.part(np.ones(500, bool)))
    assert module.make_explorer([replace(runs[0], evaluations=(bare,))], [], []) is None


def with_examples(runs, number=300):
    """Return the runs with this number of example images, which repeat the pictures of ten images."""
    changed = []
    for run in runs:
        records = run.main.records
        pictures = {
            name: getattr(records, name)[np.arange(number) % 10] for name in ("example_clean", "example_adversarial")
        }
        records = replace(records, example_index=records.index[:number], **pictures)
        changed.append(replace(run, evaluations=(replace(run.main, records=records),)))
    return changed


def kind(image):
    return image["label"], image["bin"], *(result["outcome"] for result in image["runs"].values())


def test_every_kind_of_image_is_present_beyond_the_budget(runs, monkeypatch):
    _, data = explore(with_examples(runs))
    kinds = {kind(image) for image in data["images"]}
    sizes = [sum(map(len, module._pictures(image))) for image in data["images"]]
    monkeypatch.setattr(module, "_BUDGET", (len(kinds) + 1) * max(sizes))
    explorer, fewer = explore(with_examples(runs))
    assert (explorer.num_saved, explorer.num_shown) == (300, len(fewer["images"]))
    assert len(kinds) < explorer.num_shown < 300
    assert {kind(image) for image in fewer["images"]} == kinds
    # The selected images are unchanged and in their original order.
    assert [image for image in data["images"] if image["id"] in {each["id"] for each in fewer["images"]}] == fewer[
        "images"
    ]


@pytest.mark.parametrize(("number", "grid"), [(300, 12), (5, 5)])
def test_an_explorer_never_takes_the_place_of_more_images_than_it_shows(runs, monkeypatch, number, grid):
    runs = with_examples(runs, number)
    _, data = explore(runs)
    sizes = [sum(map(len, module._pictures(image))) for image in data["images"]]
    monkeypatch.setattr(module, "_BUDGET", grid * max(sizes))
    assert explore(runs)[0].num_shown >= grid
    monkeypatch.setattr(module, "_BUDGET", (grid - 1) * min(sizes))
    assert module.make_explorer(runs, [], []) is None


def test_names_cannot_break_out_of_the_data(tmp_path):
    classes = ("</script><img src=x>", "<!--<script>", "\u2028", *CIFAR_CLASSES[3:])
    run = make_run(tmp_path / "run", method={"name": "my_mod:a<b"}, channels=3, eps=8 / 255, classes=classes)
    explorer, data = explore(read_runs([run]))
    assert "<" not in explorer.data
    assert "\u2028" not in explorer.data
    assert data["classes"] == list(classes)
    assert data["runs"] == {"0": "a<b"}
