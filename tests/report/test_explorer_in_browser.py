"""The explorer as a reader uses it: by mouse, by keyboard, by what a screen reader is told, and without JavaScript."""

import json

import pytest

from helpers.chromium import chromium
from helpers.made_up_runs import make_run
from robustill.analysis.difficulty import BINS, RADIUS_BINS, radius_bins
from robustill.analysis.runs import read_runs
from robustill.report import report

pytestmark = pytest.mark.browser

COUNT = "document.querySelector('#explorer [role=status]').textContent"
CARDS = "document.querySelectorAll('#explorer li').length"
IMAGES = 16


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A page of a student and its baseline with pictures of test and training images, and their records."""
    root = tmp_path_factory.mktemp("explored")
    both = {"evaluations": ("test-best-pgd", "train-best-pgd"), "dynamics": 500}
    student = make_run(root / "akd", method={"name": "akd"}, teachers=("t",), strength=0.6, **both)
    baseline = make_run(root / "<b>at", method={"name": "at"}, **both)
    page = report([student, baseline], root / "page.html")
    return page, [run.main.records for run in read_runs([student, baseline])]


@pytest.fixture
def tab(made, tmp_path):
    with chromium(tmp_path / "profile") as opened:
        opened.open(made[0], width=1280)
        yield opened
        assert opened.complaints() == []
        assert [url for url in opened.requests() if not url.startswith("data:")] == [made[0].resolve().as_uri()]


def texts_of(selector):
    return f"[...document.querySelectorAll({selector!r})].map(e => e.textContent)"


def choose(tab, name, value):
    tab.evaluate(
        f"(() => {{ const s = document.querySelector('#explorer-{name}'); s.value = {value!r};"
        "s.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )


def offered(tab):
    """Difficulties that can be chosen."""
    found = "[...document.querySelectorAll('#explorer-bin option')].filter(e => !e.hidden).map(e => e.value)"
    return tab.evaluate(f"{found}.filter(Boolean)")


def press(tab, key, code=0):
    for kind in ("rawKeyDown", "keyUp"):
        tab.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)


def held(records):
    return [records.robust[:IMAGES] for records in records]


def test_filters_find_the_images_that_the_records_hold(tab, made):
    first, second = held(made[1])
    assert tab.evaluate(COUNT) == f"{IMAGES} of {IMAGES} images"
    expected = {
        "both": first & second,
        "first": first & ~second,
        "second": second & ~first,
        "neither": ~first & ~second,
    }
    for value, rows in expected.items():
        choose(tab, "who", value)
        assert tab.evaluate(COUNT) == f"{rows.sum()} of {IMAGES} images"
        assert tab.evaluate(CARDS) == rows.sum()
    choose(tab, "who", "")
    labels = made[1][0].label[:IMAGES]
    choose(tab, "class", str(labels[0]))
    assert tab.evaluate(CARDS) == (labels == labels[0]).sum()
    shown = tab.evaluate(texts_of("#explorer li strong"))
    assert set(shown) == {str(labels[0])}
    choose(tab, "outcome", "held")
    assert tab.evaluate(CARDS) == ((labels == labels[0]) & first).sum()
    tab.evaluate("document.querySelector('#explorer [type=reset]').click()")
    # Its work is done after the event.
    tab.call("Runtime.evaluate", expression="new Promise(done => setTimeout(done, 50))", awaitPromise=True)
    assert tab.evaluate(CARDS) == IMAGES


def test_difficulty_of_training_images(tab):
    choose(tab, "set", "1")
    options = offered(tab)
    assert options
    assert set(options) <= set(BINS)
    found = []
    for name in options:
        choose(tab, "bin", name)
        texts = tab.evaluate(texts_of("#explorer li > .truth"))
        assert texts
        assert all(text.endswith(f", {name}") for text in texts)
        found += texts
    assert len(found) == len(set(found)) <= IMAGES


def test_difficulty_of_test_images_is_the_radius_that_breaks_the_baseline(tab, made):
    options = offered(tab)
    assert options
    assert set(options) <= set(RADIUS_BINS)
    codes = radius_bins(made[1][1])[:IMAGES]
    for name in options:
        choose(tab, "bin", name)
        assert tab.evaluate(CARDS) == (codes == RADIUS_BINS.index(name)).sum()


def test_a_card_shows_three_pictures_and_the_probabilities_of_each_run(tab, made):
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
    assert cell == f"{100 * made[1][0].adversarial_probabilities[0].max():.1f}\N{NO-BREAK SPACE}%"


def test_by_keyboard(tab, made):
    first, second = held(made[1])
    tab.evaluate("document.querySelector('#explorer-set').focus()")
    press(tab, "Tab", 9)
    assert tab.evaluate("document.activeElement.name") == "who"
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    press(tab, "ArrowDown", 40)
    assert tab.evaluate("document.activeElement.value") == "both"
    assert tab.evaluate(COUNT) == f"{(first & second).sum()} of {IMAGES} images"
    reached = []
    for _ in range(4):
        press(tab, "Tab", 9)
        reached.append(tab.evaluate("document.activeElement.name || document.activeElement.type"))
    assert reached == ["outcome", "class", "bin", "reset"]


def test_what_a_screen_reader_is_told(tab):
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    told = [
        (node["role"]["value"], node.get("name", {}).get("value"), node.get("properties", []))
        for node in nodes
        if not node["ignored"]
    ]
    names = [name for role, name, _ in told if role == "combobox"]
    assert names == ["Images", "Right under attack", "Outcome of akd", "Class", "Difficulty"]
    (properties,) = [properties for role, _, properties in told if role == "status"]
    assert {"name": "live", "value": {"type": "token", "value": "polite"}} in properties
    assert "Images that fit the filters" in [name for role, name, _ in told if role == "list"]
    assert all(name for role, name, _ in told if role in ("image", "button", "form", "table"))


def test_more_is_shown_on_demand_and_the_focus_goes_there(made, tmp_path):
    text = made[0].read_text()
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
        assert tab.complaints() == []


@pytest.mark.parametrize("width", [1280, 390])
def test_three_runs_are_compared_in_pairs(made, tmp_path, width):
    name = "trades-with-a-name-that-is-rather-long-for-a-phone"
    third = make_run(tmp_path / name, method={"name": "trades"}, strength=0.3)
    runs = [made[0].parent / "akd", made[0].parent / "<b>at", third]
    page = report(runs, tmp_path / "page.html")
    with chromium(tmp_path / "profile") as tab:
        tab.open(page, width=width)
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        a, b = (run.main.records.robust[:IMAGES] for run in read_runs([runs[0], third]))
        choose(tab, "second", "2")
        choose(tab, "who", "first")
        assert tab.evaluate(COUNT) == f"{(a & ~b).sum()} of {IMAGES} images"
        choose(tab, "who", "")
        names = tab.evaluate(texts_of("#explorer li:first-child .opinion .truth span:first-child"))
        assert names == ["akd", third.name]
        assert tab.complaints() == []


def test_no_other_script_runs(made, tmp_path):
    with chromium(tmp_path / "profile") as tab:
        tab.open(made[0], width=1280)
        made_here = "Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'})"
        tab.evaluate(f"document.body.append({made_here})")
        assert tab.evaluate("window.ran") is None


def test_without_javascript_the_page_shows_its_dozen(made, tmp_path):
    with chromium(tmp_path / "profile") as tab:
        tab.call("Emulation.setScriptExecutionDisabled", value=True)
        tab.open(made[0], width=1280)
        root = tab.call("DOM.getDocument")["root"]["nodeId"]

        def has_a_box(selector):
            node = tab.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
            style = tab.call("CSS.getComputedStyleForNode", nodeId=node)["computedStyle"]
            return next(each["value"] for each in style if each["name"] == "display") != "none"

        tab.call("DOM.enable")
        tab.call("CSS.enable")
        assert has_a_box("#dozen")
        assert not has_a_box("#explorer")
        assert tab.complaints() == []
