"""The pages of the documentation, read as Markdown: their code blocks, headings and links."""

from __future__ import annotations

import re
import shlex
import unicodedata
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# Beside the site, the pages that are read in the repository.
OTHER_PAGES = [*ROOT.glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
PAGES = [*sorted(OTHER_PAGES), *sorted(DOCS.rglob("*.md"))]

_FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]*)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_INCLUDED = re.compile(r'^--8<-- "([^"]+)"$', re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of code: its language, the file that it is the content of, if any, and its text."""

    language: str
    title: str
    text: str

    def commands(self) -> list[list[str]]:
        """Return the commands of a shell block as words, without comments."""
        joined = self.text.replace("\\\n", " ")
        return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def blocks(page: Path) -> list[Block]:
    """Return the blocks of code of a page, in order."""
    found = _FENCE.findall(page.read_text(encoding="utf-8"))
    return [Block(language=language, title=title, text=text) for language, title, text in found]


def commands(page: Path) -> list[list[str]]:
    """Return the commands in all shell blocks of a page."""
    return [words for block in blocks(page) if block.language == "sh" for words in block.commands()]


def links(page: Path) -> list[str]:
    """Return the targets of the links of a page that do not lead to another site."""
    targets = _LINK.findall(_CODE.sub("", _content(page)))
    return [target for target in targets if not re.match(r"\w+:", target)]


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as Python-Markdown makes them."""
    text = re.sub(r"^```.*?^```$", "", _content(page), flags=re.MULTILINE | re.DOTALL)
    return {_slug(line.lstrip("# ")) for line in text.splitlines() if re.match("#+ ", line)}


def _content(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    return _INCLUDED.sub(lambda match: (ROOT / match[1]).read_text(encoding="utf-8"), text)


def _slug(heading: str) -> str:
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())
