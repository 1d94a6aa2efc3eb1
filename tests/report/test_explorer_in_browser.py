"""The explorer in a browser: with mouse, keyboard and screen reader, and without JavaScript."""

import json

import pytest

from helpers.chromium import chromium
from helpers.made_up_runs import make_run
from helpers.read_arms import read_runs
from robustill.analysis.difficulty import BINS, RADIUS_BINS, radius_bins
from robustill.report import report

pytestmark = pytest.mark.browser

COUNT = "document.querySelector('#explorer [role=status]').textContent"
CARDS = "document.querySelectorAll('#explorer li').length"
IMAGES = 16


@pytest.fixture(scope="module")
def page_and_records(tmp_path_factory):
    """A page of a student and its baseline with pictures of test and training images, and their records."""
    root = tmp_path_factory.mktemp("explorer")
    both = {"evaluations": ("test-best-pgd", "train-best-pgd"), "dynamics": 500}
    student = make_run(root / "akd", method={"name": "akd"}, teachers=("t",), strength=0.6, **both)
    baseline = make_run(root / "<b>at", method={"name": "at"}, **both)
    page = report([student, baseline], root / "page.html")
    return page, [run.main.records for run in read_runs([student, baseline])]


@pytest.fixture
def tab(page_and_records, tmp_path):
    with chromium(tmp_path / "profile") as opened:
        opened.open(page_and_records[0], width=1280)
        yield opened
        assert opened.console_messages() == []
        assert [url for url in opened.requests() if not url.startswith("data:")] == [
            page_and_records[0].resolve().as_uri()
        ]


def texts_of(selector):
    return f"[...document.querySelectorAll({selector!r})].map(e => e.textContent)"


def select(tab, name, value):
    tab.evaluate(
        f"(() => {{ const s = document.querySelector('#explorer-{name}'); s.value = {value!r};"
        "s.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )


def offered_bins(tab):
    """Return the bins of difficulty that can be selected."""
    options = "[...document.querySelectorAll('#explorer-bin option')].filter(e => !e.hidden).map(e => e.value)"
    return tab.evaluate(f"{options}.filter(Boolean)")


def press(tab, key, code=0):
    for kind in ("rawKeyDown", "keyUp"):
        tab.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)


def robust(records):
    return [records.robust[:IMAGES] for records in records]


def test_filters_match_the_records(tab, page_and_records):
    first, second = robust(page_and_records[1])
    assert tab.evaluate(COUNT) == f"{IMAGES} of {IMAGES} images"
    expected = {
        "both": first & second,
        "first": first & ~second,
        "second": second & ~first,
        "neither": ~first & ~second,
    }
    for value, rows in expected.items():
        select(tab, "robust", value)
        assert tab.evaluate(COUNT) == f"{rows.sum()} of {IMAGES} images"
        assert tab.evaluate(CARDS) == rows.sum()
    select(tab, "robust", "")
    labels = page_and_records[1][0].label[:IMAGES]
    select(tab, "class", str(labels[0]))
    assert tab.evaluate(CARDS) == (labels == labels[0]).sum()
    shown = tab.evaluate(texts_of("#explorer li strong"))
    assert set(shown) == {str(labels[0])}
    select(tab, "outcome", "robust")
    assert tab.evaluate(CARDS) == ((labels == labels[0]) & first).sum()
    tab.evaluate("document.querySelector('#explorer [type=reset]').click()")
    # The handler runs after the event.
    tab.call("Runtime.evaluate", expression="new Promise(done => setTimeout(done, 50))", awaitPromise=True)
    assert tab.evaluate(CARDS) == IMAGES


def test_training_images_are_filtered_by_difficulty(tab):
    select(tab, "set", "1")
    options = offered_bins(tab)
    assert options
    assert set(options) <= set(BINS)
    found = []
    for name in options:
        select(tab, "bin", name)
        texts = tab.evaluate(texts_of("#explorer li > .heading"))
        assert texts
        assert all(text.endswith(f", {name}") for text in texts)
        found += texts
    assert len(found) == len(set(found)) <= IMAGES


def test_test_images_are_filtered_by_radius(tab, page_and_records):
    options = offered_bins(tab)
    assert options
    assert set(options) <= set(RADIUS_BINS)
    codes = radius_bins(page_and_records[1][1])[:IMAGES]
    for name in options:
        select(tab, "bin", name)
        assert tab.evaluate(CARDS) == (codes == RADIUS_BINS.index(name)).sum()


def test_a_card_shows_the_pictures_and_probabilities_of_runs(tab, page_and_records):
    pictures = tab.evaluate(
        "[...document.querySelector('#explorer li').querySelectorAll('img')]"
        ".map(i => i.complete && i.naturalWidth == 8 && i.alt.length > 5)"
    )
    assert pictures == [True] * 6
    captions = tab.evaluate(
        "[...document.querySelector('#explorer li').querySelectorAll('caption')].map(e => e.textContent)"
    )
    assert captions == ["Probabilities of akd", "Probabilities of <b>at"]
    cell = tab.evaluate("document.querySelector('#explorer li td:last-child').textContent")
    assert cell == f"{100 * page_and_records[1][0].adversarial_probabilities[0].max():.1f}\N{NO-BREAK SPACE}%"


def test_the_filters_work_by_keyboard(tab, page_and_records):
    first, second = robust(page_and_records[1])
    tab.evaluate("document.querySelector('#explorer-set').focus()")
    press(tab, "Tab", 9)
    assert tab.evaluate("document.activeElement.name") == "robust"
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    press(tab, "ArrowDown", 40)
    assert tab.evaluate("document.activeElement.value") == "both"
    assert tab.evaluate(COUNT) == f"{(first & second).sum()} of {IMAGES} images"
    reached = []
    for _ in range(4):
        press(tab, "Tab", 9)
        reached.append(tab.evaluate("document.activeElement.name || document.activeElement.type"))
    assert reached == ["outcome", "class", "bin", "reset"]


def test_the_accessibility_tree_names_every_element(tab):
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    visible = [
        (node["role"]["value"], node.get("name", {}).get("value"), node.get("properties", []))
        for node in nodes
        if not node["ignored"]
    ]
    names = [name for role, name, _ in visible if role == "combobox"]
    assert names == ["Images", "Correct under attack", "Outcome of akd", "Class", "Difficulty"]
    (properties,) = [properties for role, _, properties in visible if role == "status"]
    assert {"name": "live", "value": {"type": "token", "value": "polite"}} in properties
    assert "Images that match the filters" in [name for role, name, _ in visible if role == "list"]
    assert all(name for role, name, _ in visible if role in ("image", "button", "form", "table"))


def test_show_more_appends_images_and_moves_the_focus(page_and_records, tmp_path):
    text = page_and_records[0].read_text()
    begin, end = 'id="explorer-data">', "</script>"
    before, _, rest = text.partition(begin)
    content, _, after = rest.partition(end)
    data = json.loads(content)
    data["images"] = [
        {**each, "id": 100 * k + each["id"]} for k in range(3) for each in data["images"] if each["set"] == 0
    ]
    page = tmp_path / "page.html"
    page.write_text(before + begin + json.dumps(data).replace("<", "\\u003c") + end + after)
    with chromium(tmp_path / "profile") as tab:
        tab.open(page, width=1280)
        assert (tab.evaluate(COUNT), tab.evaluate(CARDS)) == ("48 of 48 images, the first 24 shown", 24)
        tab.evaluate("document.querySelector('#explorer .more').click()")
        assert (tab.evaluate(COUNT), tab.evaluate(CARDS)) == ("48 of 48 images", 48)
        assert tab.evaluate("[...document.querySelectorAll('#explorer li')].indexOf(document.activeElement)") == 24
        assert tab.evaluate("document.querySelector('#explorer .more').hidden")
        assert tab.console_messages() == []


@pytest.mark.parametrize("width", [1280, 390])
def test_three_runs_are_compared_in_pairs(page_and_records, tmp_path, width):
    name = "trades-with-a-name-that-is-rather-long-for-a-phone"
    third = make_run(tmp_path / name, method={"name": "trades"}, strength=0.3)
    runs = [page_and_records[0].parent / "akd", page_and_records[0].parent / "<b>at", third]
    page = report(runs, tmp_path / "page.html")
    with chromium(tmp_path / "profile") as tab:
        tab.open(page, width=width)
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        a, b = (run.main.records.robust[:IMAGES] for run in read_runs([runs[0], third]))
        select(tab, "second", "2")
        select(tab, "robust", "first")
        assert tab.evaluate(COUNT) == f"{(a & ~b).sum()} of {IMAGES} images"
        select(tab, "robust", "")
        names = tab.evaluate(texts_of("#explorer li:first-child .prediction .heading span:first-child"))
        assert names == ["akd", third.name]
        assert tab.console_messages() == []


def test_no_other_script_runs(page_and_records, tmp_path):
    with chromium(tmp_path / "profile") as tab:
        tab.open(page_and_records[0], width=1280)
        script = "Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'})"
        tab.evaluate(f"document.body.append({script})")
        assert tab.evaluate("window.ran") is None


def test_without_javascript_the_page_shows_the_gallery(page_and_records, tmp_path):
    with chromium(tmp_path / "profile") as tab:
        tab.call("Emulation.setScriptExecutionDisabled", value=True)
        tab.open(page_and_records[0], width=1280)
        root = tab.call("DOM.getDocument")["root"]["nodeId"]

        def is_displayed(selector):
            node = tab.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
            style = tab.call("CSS.getComputedStyleForNode", nodeId=node)["computedStyle"]
            return next(each["value"] for each in style if each["name"] == "display") != "none"

        tab.call("DOM.enable")
        tab.call("CSS.enable")
        assert is_displayed("#gallery")
        assert not is_displayed("#explorer")
        assert tab.console_messages() == []
