from pathlib import Path

import pytest

from helpers.chromium import chromium
from helpers.made_up_runs import CIFAR_CLASSES, make_run
from helpers.made_up_studies import make_network, make_study
from robustill.report import report

pytestmark = pytest.mark.browser

WIDE_ELEMENTS = """[...document.querySelectorAll('body *')]
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('pre, .visually-hidden'))
    .map(e => e.tagName + '.' + e.className).join()"""

# Elements whose text has too little contrast with the page, by the formula of WCAG 2.
LOW_CONTRAST_ELEMENTS = """(() => {
  const part = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(part);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const ratio = c => { const l = light(c); return (Math.max(l, paper) + 0.05) / (Math.min(l, paper) + 0.05); };
  return [...document.querySelectorAll('body *')]
    .filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()))
    .filter(e => ratio(e.namespaceURI.endsWith('svg') ? getComputedStyle(e).fill : getComputedStyle(e).color) < 4.5)
    .map(e => e.tagName + '.' + (e.className.baseVal ?? e.className)).join(); })()"""

# Texts of a figure that lie over one another, in the browser's own fonts.
OVERPRINTED_TEXTS = """[...document.querySelectorAll('svg[role=img]')].flatMap(svg => {
  const boxes = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
  return boxes.flatMap(([name, a], i) => boxes.slice(i + 1)
    .filter(([, b]) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3)
    .map(([other]) => `${svg.ariaLabel}: ${name} over ${other}`)); }).join()"""


@pytest.fixture
def study_page(tmp_path) -> Path:
    """Return the page of a study with a network of a long name."""
    name = f"{'a_network_with_a_very_long_name_' * 3}.pth"
    foreign = make_network(tmp_path / "evaluations/test-net-pgd", checkpoint=name)
    return report([make_study(tmp_path / "alpha"), foreign], tmp_path / "study.html")


@pytest.fixture
def page(two_runs, tmp_path) -> Path:
    name = "a-run-whose-name-is-far-longer-than-anybody-would-hope-and-has-no-space"
    odd = make_run(tmp_path / name, method={"name": "rslad"}, channels=3, eps=8 / 255, classes=CIFAR_CLASSES, seed=7)
    return report([*two_runs, odd], tmp_path / "page.html")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 820, 390, 360])
def test_the_page_fits_is_legible_and_loads_nothing(page, tmp_path, width, dark):
    with chromium(tmp_path / "profile") as tab:
        tab.open(page, width=width, dark=dark)
        assert tab.evaluate("innerWidth") == width
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        assert tab.evaluate(WIDE_ELEMENTS) == ""
        assert tab.evaluate(LOW_CONTRAST_ELEMENTS) == ""
        assert tab.evaluate(OVERPRINTED_TEXTS) == ""
        assert [url for url in tab.requests() if not url.startswith("data:")] == [page.resolve().as_uri()]
        assert tab.console_messages() == []
        assert tab.evaluate("document.querySelectorAll('svg[role=img]').length") >= 12
        assert tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, background[4:-1].split(","))) < 200) == dark


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_of_a_study_fits_and_its_names_do_not_overprint(study_page, tmp_path, width):
    with chromium(tmp_path / "profile") as tab:
        tab.open(study_page, width=width)
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        assert tab.evaluate(WIDE_ELEMENTS) == ""
        assert tab.evaluate(LOW_CONTRAST_ELEMENTS) == ""
        assert tab.evaluate(OVERPRINTED_TEXTS) == ""
        tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        assert tab.evaluate(WIDE_ELEMENTS) == ""


def test_the_printed_page_shows_collapsed_details(page, tmp_path):
    with chromium(tmp_path / "profile") as tab:
        tab.open(page, width=720, dark=True)
        details = "document.querySelector('#reproduce details pre').checkVisibility({contentVisibilityAuto: true})"
        assert not tab.evaluate(details)
        tab.call("Emulation.setEmulatedMedia", media="print")
        assert tab.evaluate(details)
        assert tab.evaluate("document.documentElement.scrollWidth") == 720
        tab.pdf(tmp_path / "page.pdf")
        assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF-")
