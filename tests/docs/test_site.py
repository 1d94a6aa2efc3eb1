"""The documentation is built as a site."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import zensical

from helpers.pages import DOCS, ROOT


class Page(HTMLParser):
    """The anchors of a page, and what it refers to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.references: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {each for each in (values.get("id"), values.get("name")) if each}
        self.references += [each for each in (values.get("href"), values.get("src")) if each]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site from a copy, as it writes beside its configuration."""
    project = tmp_path_factory.mktemp("project")
    shutil.copytree(DOCS, project / "docs")
    for name in ("zensical.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, project)
    # Files that pages show.
    shutil.copytree(ROOT / "examples" / "cluster", project / "examples" / "cluster")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        # Strict: a link that leads nowhere is an error.
        zensical.build(str(project / "zensical.toml"), {"strict": True, "clean": True})
    return project / "site"


def test_every_page_is_built_and_shows_its_text(site: Path) -> None:
    for source in DOCS.rglob("*.md"):
        built = site / source.relative_to(DOCS).with_suffix(".html")
        assert built.is_file(), built
    assert "What changes for users of robustill" in (site / "changes.html").read_text(encoding="utf-8")


def test_everything_that_a_page_refers_to_is_there(site: Path) -> None:
    pages = {file: Page(file) for file in site.rglob("*.html")}
    assert len(pages) > 20
    checked = 0
    for file, page in pages.items():
        if file.name == "404.html":
            continue
        for reference in page.references:
            parts = urlsplit(reference)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{file.name}: {reference}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, f"{file.name}: {reference}"
            checked += 1
    assert checked > 500


def test_no_page_shows_markup_instead_of_what_it_means(site: Path) -> None:
    for file in site.rglob("*.html"):
        text = re.sub(r"<(code|pre|script|style)\b.*?</\1>", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert "--8&lt;--" not in text, file.name
        assert not re.search(r"^\s*```|\]\([\w./#-]+\)|\|---\|", text, re.MULTILINE), file.name
