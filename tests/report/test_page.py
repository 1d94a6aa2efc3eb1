import base64
import hashlib
import json
import os
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from helpers.made_up_runs import CIFAR_CLASSES, add_fixed_attack, make_run
from helpers.made_up_studies import make_network, make_study
from helpers.read_arms import read_arms
from helpers.tiny_studies import ONE, tiny
from robustill.analysis.summary import summary
from robustill.core.errors import RunError
from robustill.report import report
from robustill.report.ranking import common_evaluation, rank
from robustill.report.views import missing_lines
from robustill.runs.directory import RunDirectory
from robustill.runs.records import Records
from robustill.studies.scheduler import run_study

VOID = {"meta", "link", "img", "br", "input", "hr"}


class Page(HTMLParser):
    """The elements of a page in order, with their text; unbalanced tags are an error."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[dict] = []
        self.elements: list[dict] = []
        self.feed(text)
        self.close()
        assert [each["tag"] for each in self.open] == []

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "attrs": dict(attrs), "text": "", "inside": [each["tag"] for each in self.open]}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append({"tag": tag, "attrs": dict(attrs), "text": "", "inside": []})

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag: str, **attributes: str) -> list[dict]:
        expected = {name.rstrip("_"): value for name, value in attributes.items()}
        return [e for e in self.elements if e["tag"] == tag and expected.items() <= e["attrs"].items()]


def make_page(runs: list[Path], folder: Path) -> tuple[Page, str]:
    text = report(runs, folder / "page.html").read_text()
    return Page(text), text


@pytest.fixture(scope="module")
def shared(made_once, tmp_path_factory):
    """The page of the two runs, parsed and as text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made_once)
        return make_page([Path("runs/akd"), Path("runs/pgd-at")], tmp_path_factory.mktemp("page"))


def text_of(element: dict) -> str:
    return " ".join(element["text"].split())


def test_the_page_is_structured_and_accessible(shared):
    page, text = shared
    assert text.startswith("<!doctype html>")
    assert page.all("html")[0]["attrs"]["lang"] == "en"
    assert [len(page.all(tag)) for tag in ("main", "header", "nav", "h1")] == [1, 1, 1, 1]
    sections = page.all("section")
    assert [each["attrs"]["id"] for each in sections] == ["result", "trust", "changes", "images", "reproduce"]
    ids = [each["attrs"]["id"] for each in page.elements if "id" in each["attrs"]]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        assert link["attrs"]["href"].removeprefix("#") in ids
    for section in sections:
        assert section["attrs"]["aria-labelledby"] in ids
    assert all(each["attrs"]["alt"] for each in page.all("img"))
    assert all(each["attrs"].get("scope") for each in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all("aria-label" in each["attrs"] or "aria-hidden" in each["attrs"] for each in page.all("svg"))
    levels = [int(each["tag"][1]) for each in page.elements if re.fullmatch(r"h\d", each["tag"])]
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_the_page_loads_nothing_and_runs_only_its_own_script(shared):
    page, text = shared
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    data, script = page.all("script")
    assert data["attrs"] == {"type": "application/json", "id": "explorer-data"}
    assert script["attrs"] == {}
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["attrs"]["content"]
    digest = base64.b64encode(hashlib.sha256(script["text"].encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    for element in page.elements:
        for name in ("src", "href", "xlink:href"):
            assert element["attrs"].get(name, "#").startswith(("#", "data:"))
        assert not any(name.startswith("on") for name in element["attrs"])
    assert len(text) < 2_000_000


def test_the_numbers_of_the_table_equal_the_records(shared, two_runs):
    page, _ = shared
    table = next(each for each in page.all("table") if each["attrs"]["class"] == "results")
    first = page.elements.index(table)
    cells = [text_of(each) for each in page.elements[first:] if "data-label" in each["attrs"]]
    expected = []
    for run in two_runs:
        for name in ("test-best-pgd", "test-last-pgd"):
            records = Records.load(run / "evaluations" / name)
            n, labels = len(records), records.label
            for flags in (records.clean_probabilities.argmax(1) == labels, records.robust):
                share, z = flags.mean(), 1.959964
                centre = (share + z * z / 2 / n) / (1 + z * z / n)
                half = z * np.sqrt(share * (1 - share) / n + z * z / 4 / n / n) / (1 + z * z / n)
                expected.append(f"{100 * share:.1f} % {100 * (centre - half):.1f}–{100 * (centre + half):.1f}")
            both = [p.astype(np.float64) for p in (records.clean_probabilities, records.adversarial_probabilities)]
            for p in both:
                top, right = p.max(1), p.argmax(1) == labels
                bin_of = np.minimum((top * 15).astype(int), 14)
                gaps = [abs((top - right)[bin_of == b].sum()) for b in range(15)]
                expected.append(f"{sum(gaps) / n:.3f}")
            expected += [f"{-np.log(p[np.arange(n), labels]).mean():.3f}" for p in both]
            expected += [f"{((p - np.eye(10)[labels]) ** 2).sum(1).mean():.3f}" for p in both]
    assert cells == expected


def test_calibration_is_that_of_the_fixed_attack_where_every_evaluation_has_it(two_runs, tmp_path):
    # The figures, the tables and the sentences beside them name the attack.
    page, text = make_page([add_fixed_attack(run) for run in two_runs], tmp_path)
    assert "attacked</th>" not in text
    assert "adversarial images: ECE" not in text
    assert [text_of(each) for each in page.all("th", class_="sub")[:6]] == ["clean", "PGD-10"] * 3
    shown = {each["attrs"]["data-label"]: text_of(each) for each in reversed(page.elements) if is_number(each)}
    results = summary(Records.load(two_runs[0] / "evaluations" / "test-best-pgd"))
    for metric, name in (("ECE", "ece"), ("NLL", "nll"), ("Brier", "brier")):
        assert shown[f"{metric}, PGD-10"] == f"{results[f'{name}_pgd']:.3f}"
    assert "“PGD-10” refers to the images of one attack" in text
    assert "PGD-10 images: ECE" in text


def is_number(element: dict) -> bool:
    return element["attrs"].get("data-label", "").endswith("PGD-10") and "table" in element["inside"]


def test_each_run_names_its_baseline(shared):
    page, _ = shared
    runs = [text_of(row) for row in page.all("tr", class_="run")]
    assert runs[0].startswith("AKD method akd (alpha 0.9) · runs/akd ·")
    assert runs[0].endswith("compared with PGD-AT")
    assert "compared with" not in runs[1]


def test_numbers_carry_their_conditions(shared):
    page, text = shared
    head, conditions = page.all("p", class_="conditions")
    assert text_of(head) == f"Evaluated on {text_of(conditions)}"
    for part in (
        "500 of 500 test images",
        "threat linf, eps 0.2",
        "attack pgd (pgd-ce 5×20 steps, pgd-margin 5×20 steps)",
        "seed 0",
        "2026-11-23",
    ):
        assert part in text_of(conditions)
    assert "run:runs/teacher-0@best (eps 0.15)" in text
    assert "77\N{NARROW NO-BREAK SPACE}850 parameters" in text
    assert "3f6b" * 16 in text
    commands = page.all("pre")[0]["text"].split("\n")
    assert commands == [
        "robustill train runs/akd/config.yaml --run runs/akd-again",
        "robustill evaluate runs/akd-again --checkpoint best last --suite pgd --seed 0",
        "robustill report runs/akd-again --out report.html",
    ]
    assert "trained in 1\N{NO-BREAK SPACE}min 32\N{NO-BREAK SPACE}s" in text


def test_a_subset_is_called_a_subset(tmp_path):
    runs = [
        make_run(tmp_path / "akd", method={"name": "akd"}, teachers=("t",), strength=1, of_images=797),
        make_run(tmp_path / "at", method={"name": "at"}, of_images=797),
    ]
    page, _ = make_page(runs, tmp_path)
    assert "500 of 797 test images, a subset" in text_of(page.all("p", class_="conditions")[0])
    assert "of a subset of 500 test images" in text_of(page.all("p", class_="verdict")[0])


@pytest.mark.slow
def test_different_conditions_are_listed_separately(two_runs, tmp_path):
    other = make_run(tmp_path / "other", method={"name": "at"}, suite={"name": "autoattack"})
    page, _ = make_page([two_runs[0], other], tmp_path)
    conditions = [text_of(each) for each in page.all("p", class_="conditions")]
    assert len(conditions) == 3
    assert conditions[0].startswith("Evaluated on 500 of 500 test images")
    assert conditions[0].endswith("2026-11-23 Other evaluations")
    assert conditions[1].startswith("AKD best and AKD last:")
    assert "attack autoattack" in conditions[2]


def test_the_same_runs_give_the_same_bytes(shared, two_runs, tmp_path):
    assert report([str(path) for path in two_runs], tmp_path / "again.html").read_text() == shared[1]


def test_values_in_the_data_are_escaped(tmp_path):
    hostile = "<script>alert(1)<!--"
    classes = (hostile, "a&b", '"><img src=x>', *CIFAR_CLASSES[3:])
    run = make_run(
        tmp_path / hostile.replace("/", ""),
        method={"name": "akd", "note": "<i>"},
        teachers=("run:<b>@best",),
        channels=3,
        classes=classes,
        config={"data": {"name": "<u>data"}},
        suite={"name": "<s>attack"},
        warnings=["<em>careful"],
        date="<time>",
    )
    page, text = make_page([run], tmp_path)
    assert {each["tag"] for each in page.elements}.isdisjoint({"i", "b", "u", "s", "em", "time"})
    assert len(page.all("script")) == text.count("<script") == text.count("</script") == 2
    assert "<!--" not in text
    shown = "".join(each["text"] for each in page.all("body"))
    for word in (
        hostile,
        "a&b",
        '"><img src=x>',
        "<i>",
        "run:<b>@best",
        "<u>data",
        "<s>attack",
        "<em>careful",
        "<time>",
    ):
        assert word in shown


@pytest.mark.parametrize(
    "missing",
    [
        "evaluations",
        "metrics.jsonl",
        pytest.param("environment.json", marks=pytest.mark.slow),
        pytest.param("checkpoints", marks=pytest.mark.slow),
    ],
)
def test_an_incomplete_run_still_gets_its_page(two_runs, tmp_path, missing):
    for run in two_runs:
        (shutil.rmtree if (run / missing).is_dir() else Path.unlink)(run / missing)
    page, text = make_page(two_runs, tmp_path)
    expected = {
        "evaluations": "AKD has not been evaluated: run robustill evaluate runs/akd",
        "metrics.jsonl": "AKD has no metrics",
        "environment.json": "The training environment was not recorded.",
        "checkpoints": "AKD is more robust than PGD-AT",
    }
    assert expected[missing] in text
    assert page.all("h2")


def test_a_single_run_gets_a_page(two_runs, tmp_path):
    page, _ = make_page(two_runs[:1], tmp_path)
    assert text_of(page.all("p", class_="verdict")[0]).startswith(
        "AKD correctly classifies 99.0 % of 500 test images, and 44.2 %"
    )


def test_a_run_without_results_gets_a_page(tmp_path):
    RunDirectory(tmp_path / "new").start("seed: 0\n")
    page, _ = make_page([tmp_path / "new"], tmp_path)
    assert text_of(page.all("p", class_="verdict")[0]) == "No verdict: no run has been evaluated yet."


def _damage_records(run):
    (run / "evaluations" / "test-best-pgd" / "records.npz").write_bytes(b"PK\x03\x04")


def _damage_metrics(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], lines[1][:20], *lines[2:]]))


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (_damage_records, "records.npz"),
        (_damage_metrics, "metrics.jsonl"),
        (lambda run: (run / "evaluations/test-last-pgd/summary.json").write_text("{"), "summary.json"),
        (lambda run: (run / "environment.json").write_text("{"), "environment.json"),
        (lambda run: (run / "config.yaml").write_text("a: ["), "config.yaml"),
        (lambda run: (run / "config.yaml").unlink(), "runs/akd"),
    ],
)
def test_a_damaged_file_is_an_error_and_keeps_the_old_page(two_runs, tmp_path, damage, file):
    out = tmp_path / "page.html"
    old = "<!doctype html>\n<title>Robustness of an old page</title>"
    out.write_text(old)
    damage(two_runs[0])
    with pytest.raises(RunError, match=re.escape(file)) as caught:
        report(two_runs, out)
    assert "\n" not in str(caught.value)
    assert out.read_text() == old
    assert [path.name for path in tmp_path.iterdir() if "page" in path.name] == ["page.html"]


def test_a_page_replaces_only_a_page(two_runs, tmp_path, shared, monkeypatch):
    monkeypatch.setattr("robustill.report.page._render", lambda *_: "rendered")
    out, first = tmp_path / "page.html", shared[1]
    # The second as early versions wrote it, without a generator in its head.
    for old in (first, first.replace('<meta name="generator" content="robustill">\n', "")):
        out.write_text(old)
        assert report(two_runs[:1], out).read_text() == "rendered"
    config = two_runs[0] / "config.yaml"
    before = config.read_bytes()
    (tmp_path / "mine.html").write_text("<!doctype html>\n<title>Mine</title>\n<title>Robustness of me</title>")
    os.mkfifo(tmp_path / "pipe")
    for place in (config, two_runs[0], tmp_path / "mine.html", tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(RunError, match=r"--out") as caught:
            report(two_runs[:1], place)
        assert "\n" not in str(caught.value)
    assert config.read_bytes() == before


def test_an_unwritable_page_gives_a_one_line_error(two_runs, tmp_path):
    with pytest.raises(RunError, match="cannot be written"):
        report(two_runs[:1], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_records_without_conditions_get_a_page(two_runs, tmp_path):
    for run in two_runs:
        folder = run / "evaluations" / "test-best-pgd"
        page = json.loads((folder / "summary.json").read_text())
        del page["sha256"]
        (folder / "summary.json").write_text(json.dumps({**page, "conditions": {}}))
    _, text = make_page(two_runs, tmp_path)
    assert "threat not recorded" in text
    assert "pgd-ce + pgd-margin" in text


@pytest.mark.slow
def test_radii_of_two_norms_do_not_share_an_axis(two_runs, tmp_path):
    l2 = {"threat": {"norm": "l2", "eps": 0.5, "text": "l2:0.5"}}
    page, _ = make_page([two_runs[0], make_run(tmp_path / "l2", method={"name": "at"}, config=l2, **l2)], tmp_path)
    labels = [
        each["attrs"]["aria-label"] for each in page.all("svg") if " at 0.2" in each["attrs"].get("aria-label", "")
    ]
    assert [label.partition(":")[0] for label in labels] == ["AKD", "PGD-AT"]


def rows_of(page: Page, which: str) -> list[str]:
    """Return the text of each row of the ranked table."""
    start = page.elements.index(next(each for each in page.all("table") if which in each["attrs"]["class"].split()))
    rows = []
    for element in page.elements[start + 1 :]:
        if element["tag"] == "table":
            break
        if element["tag"] == "tr":
            rows.append(text_of(element))
    return rows


def test_a_study_with_a_foreign_network_gets_a_ranked_page(tmp_path):
    study = make_study(tmp_path / "alpha")
    foreign = make_network(tmp_path / "evaluations/test-resnet-pgd", strength=-3, sha="01")
    page, text = make_page([study, foreign], tmp_path)
    assert text_of(page.all("h1")[0]) == "alpha-akd"
    assert "alpha-akd: The weight of the teacher." in [text_of(each) for each in page.all("p", class_="task")]
    assert text_of(page.all("p", class_="verdict")[0]).startswith("AKD, alpha 0.5")
    header, first, second, third, fourth = rows_of(page, "ranking")
    assert header.startswith("Rank and configuration Clean, % Robust, best epoch, % Robust, last epoch, %")
    assert first.startswith("1 AKD, alpha 0.5 2 seeds ")
    assert " to PGD-AT " in first
    assert second.startswith("2 PGD-AT 2 seeds ")
    assert third.startswith("3 resnet ")
    assert fourth.startswith("PGD-AT teacher 2 seeds · not evaluated like the others · ")
    assert "robust on validation images under its own threat linf, eps 0.15" in fourth
    notes = text_of(page.all("aside")[0])
    assert f"run robustill evaluate {study}/seed-0/teacher-0 --suite pgd --seed 0 --threat linf:0.2" in notes
    assert text_of(page.all("pre")[0]) == "robustill study alpha --seeds 2"
    # Figures of single runs are of one seed of each arm.
    names = ("AKD, alpha 0.5, seed 0", "PGD-AT, seed 0", "PGD-AT teacher, seed 1000")
    captions = [text_of(each) for each in page.all("figcaption")]
    assert [each for each in captions if each in names][:3] == list(names)
    assert "seed 1" not in {each.rpartition(", ")[2] for each in captions}
    assert len(text) < 3_000_000


def test_an_evaluation_of_a_foreign_network_gets_a_page(tmp_path):
    folder = make_network(tmp_path / "test-resnet-pgd", model="resnet8")
    page, text = make_page([folder], tmp_path)
    assert text_of(page.all("h1")[0]) == "resnet"
    assert text_of(page.all("h2")[0]) == "How robust is it?"
    assert text_of(page.all("p", class_="verdict")[0]).startswith("resnet correctly classifies ")
    assert "no teacher" not in text
    assert "metrics" not in text_of(page.all("section")[0])
    assert text_of(page.all("pre")[0]).startswith("robustill evaluate resnet.pth --model resnet8 --data digits")
    assert "for a temperature run" not in text


def test_a_page_without_the_validation_images_says_how_to_get_a_temperature(shared):
    page, _ = shared
    lines = text_of(page.all("ul", class_="reasons temperatures")[0])
    assert "for a temperature run robustill evaluate runs/akd --checkpoint best --split validation" in lines


def test_the_files_of_someone_else_do_not_steer_the_page_of_a_study(tmp_path):
    study = make_study(tmp_path / "alpha")
    for file in study.glob("alpha-akd*"):
        file.write_text(file.read_text().replace("alpha 0.5", "<i>\x1b[31m").replace("The weight", "<script>weight"))
    page, text = make_page([study], tmp_path)
    assert "i" not in {each["tag"] for each in page.elements}
    assert "\x1b" not in text
    assert "AKD, <i>" in text_of(page.all("p", class_="verdict")[0])
    assert len(page.all("script")) == 2


def test_a_last_epoch_that_some_seeds_lack_is_named(tmp_path):
    paths = [make_run(tmp_path / str(seed), method={"name": "at"}, seed=seed) for seed in (0, 1)]
    shutil.rmtree(paths[1] / "evaluations" / "test-last-pgd")
    arms = read_arms(paths)
    (note,) = missing_lines(rank(arms, []), common_evaluation(arms))
    assert note == (
        "PGD-AT, seed 1 was not evaluated at its last epoch, so PGD-AT has no number there: run robustill evaluate "
        f"{paths[1]} --checkpoint last"
    )


@pytest.mark.slow
def test_a_study_that_was_run_gets_a_page(tmp_path):
    study = tiny(tmp_path, seeds=2)
    run_study(study, ONE, progress=False)
    page, _ = make_page([study.folder], tmp_path)
    names = [row.partition(" 2 seeds")[0] for row in rows_of(page, "ranking")[1:]]
    assert {each.lstrip("123 ") for each in names} == {"AKD, alpha 0.5", "AKD, alpha 1", "PGD-AT", "PGD-AT teacher"}
    assert text_of(page.all("pre")[0]) == study.command
