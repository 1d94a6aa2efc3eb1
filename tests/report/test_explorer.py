import base64
import io
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from helpers.made_up_runs import CIFAR_CLASSES, make_run
from robustill.analysis.difficulty import BINS, RADIUS_BINS, difficulty
from robustill.analysis.runs import read_runs
from robustill.report import dynamics
from robustill.report import explorer as module
from robustill.report.comparison import compare


def explored(runs):
    comparisons = compare(runs)
    found = module.explorer(runs, comparisons, dynamics.side_by_side(runs, comparisons))
    return found, json.loads(found.data)


def pixels(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))), dtype=np.float64)


@pytest.fixture
def runs(two_runs):
    return read_runs(two_runs)


def test_every_picture_comes_with_what_both_runs_say(runs):
    found, data = explored(runs)
    assert (found.kept, found.shown, len(data["images"])) == (16, 16, 16)
    assert data["runs"] == {"0": "akd", "1": "pgd-at"}
    assert (data["first"], data["second"]) == (0, 1)
    factor = data["sets"][0]["factor"]
    for i, image in enumerate(data["images"]):
        assert image["id"] == 1000 + i
        # Of test images by the radius that breaks the baseline.
        reference = runs[1].main.records
        broken = "wrong without attack" if not reference.clean_correct[i] else "broken at "
        assert image["bin"].startswith("never" if reference.robust_at_eps[i].all() else broken)
        assert reference.robust[i] == (image["bin"] in ("broken at a larger radius", "never broken"))
        for number, run in enumerate(runs):
            records, said = run.main.records, image["runs"][str(number)]
            assert data["classes"][image["label"]] == records.classes[records.label[i]]
            assert (said["outcome"] == "held") == records.robust[i]
            assert (said["outcome"] == "wrong without attack") == (
                records.clean_probabilities[i].argmax() != image["label"]
            )
            clean, adversarial = records.example_clean[i, 0], records.example_adversarial[i, 0]
            np.testing.assert_allclose(pixels(image["clean"]), 255 * clean, atol=0.51)
            np.testing.assert_allclose(pixels(said["adversarial"]), 255 * adversarial, atol=0.51)
            np.testing.assert_allclose(pixels(said["change"]), 255 * (0.5 + factor * (adversarial - clean)), atol=0.51)


def test_probabilities_are_of_the_label_and_the_top_three_of_either_image(runs):
    _, data = explored(runs)
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


def test_filters_offer_what_there_is(runs):
    found, data = explored(runs)
    assert found.who == [("both", "both"), ("first", "only akd"), ("second", "only pgd-at"), ("neither", "neither")]
    assert found.asked == "akd"
    assert {number for number, _ in found.classes} == {image["label"] for image in data["images"]}
    assert found.reference == "pgd-at"
    assert {name for name, _ in found.bins} == {image["bin"] for image in data["images"]}
    assert [name for name, _ in found.outcomes] == [
        name
        for name in ("held", "fooled", "wrong without attack")
        if any(said["outcome"] == name for image in data["images"] for said in image["runs"].values())
    ]


def test_one_run_alone_has_nobody_to_be_compared_with(runs):
    found, data = explored(runs[:1])
    assert (found.who, found.second, data["second"]) == ([], None, None)


def test_the_baseline_is_second_wherever_it_stands_on_the_page(runs):
    _, data = explored(runs[::-1])
    assert (data["first"], data["second"]) == (1, 0)


def test_difficulty_of_training_images_is_that_of_their_training(tmp_path):
    run = make_run(
        tmp_path / "at", method={"name": "at"}, evaluations=("test-best-pgd", "train-best-pgd"), dynamics=500
    )
    runs = read_runs([run])
    found, data = explored(runs)
    assert [title.split(",")[1] for _, title in found.sets] == [" test images", " train images"]
    others = {image["bin"] for image in data["images"] if image["set"] == 0}
    assert others <= set(RADIUS_BINS)
    known = runs[0].dynamics
    bins = dict(zip(known.ids.tolist(), difficulty(known.adversarial), strict=True))
    shown = {image["id"]: image["bin"] for image in data["images"] if image["set"] == 1}
    assert shown == {i: BINS[bins[i]] if i in bins else None for i in range(1000, 1016)}
    assert [name for name, _ in found.bins] == [
        name for name in (*BINS, *RADIUS_BINS) if name in {*shown.values(), *others}
    ]


def test_another_attack_is_another_set(runs, tmp_path):
    other = make_run(tmp_path / "other", method={"name": "at"}, suite={"name": "standard"})
    found, data = explored([*runs, *read_runs([other])])
    assert len(found.sets) == 2
    assert Counter(frozenset(image["runs"]) for image in data["images"]) == {
        frozenset({"0", "1"}): 16,
        frozenset({"2"}): 16,
    }
    assert found.asked == "the first run"


def test_another_picture_of_the_same_number_is_not_shown_as_the_same(runs):
    records = runs[1].main.records
    moved = replace(records, example_clean=records.example_clean[::-1].copy())
    changed = replace(runs[1], evaluations=(replace(runs[1].main, records=moved),))
    _, data = explored([runs[0], changed])
    same = [np.array_equal(a, b) for a, b in zip(records.example_clean, moved.example_clean, strict=True)]
    assert ["1" in image["runs"] for image in data["images"]] == same


def test_no_pictures_no_explorer(runs):
    bare = replace(runs[0].main, records=runs[0].main.records.part(np.ones(500, bool)))
    assert module.explorer([replace(runs[0], evaluations=(bare,))], [], []) is None


def many(runs, number=300):
    """The runs, as if they had kept as many pictures: those of ten images again and again."""
    found = []
    for run in runs:
        records = run.main.records
        kept = {
            name: getattr(records, name)[np.arange(number) % 10] for name in ("example_clean", "example_adversarial")
        }
        records = replace(records, example_index=records.index[:number], **kept)
        found.append(replace(run, evaluations=(replace(run.main, records=records),)))
    return found


def kind(image):
    return image["label"], image["bin"], *(said["outcome"] for said in image["runs"].values())


def test_beyond_the_budget_every_kind_of_image_is_still_there(runs, monkeypatch):
    _, data = explored(many(runs))
    kinds = {kind(image) for image in data["images"]}
    sizes = [sum(map(len, module._pictures(image))) for image in data["images"]]
    monkeypatch.setattr(module, "_BUDGET", (len(kinds) + 1) * max(sizes))
    found, fewer = explored(many(runs))
    assert (found.kept, found.shown) == (300, len(fewer["images"]))
    assert len(kinds) < found.shown < 300
    assert {kind(image) for image in fewer["images"]} == kinds
    # What is there is as it would be with all others, and in their order.
    assert [image for image in data["images"] if image["id"] in {each["id"] for each in fewer["images"]}] == fewer[
        "images"
    ]


def test_a_budget_of_nothing_is_an_explorer_of_nothing(runs, monkeypatch):
    monkeypatch.setattr(module, "_BUDGET", 0)
    found, data = explored(runs)
    assert (found.shown, data["images"], found.classes, found.bins) == (0, [], [], [])


def test_names_of_strangers_cannot_leave_the_data(tmp_path):
    classes = ("</script><img src=x>", "<!--<script>", "\u2028", *CIFAR_CLASSES[3:])
    run = make_run(tmp_path / "a<b", method={"name": "at"}, channels=3, eps=8 / 255, classes=classes)
    found, data = explored(read_runs([run]))
    assert "<" not in found.data
    assert "\u2028" not in found.data
    assert data["classes"] == list(classes)
    assert data["runs"] == {"0": "a<b"}
