"""What do the recorded results say? Writes the tables of docs/results/*.md and docs/board.md, and the figures.

    python benchmarks/pages/write.py

About 15 seconds. A table stands between <!-- table: NAME --> and <!-- end of table -->; everything comes from the files
of benchmarks/results and docs/board alone.
"""

from __future__ import annotations

import argparse
import re
from functools import partial
from pathlib import Path

from claims import claims
from figures import FIGURES, svg
from tables import TABLES

from robustill.studies.board_table import board_markdown
from robustill.studies.tracks import TRACKS

DOCS = Path(__file__).parents[2] / "docs" / "results"
BOARD_PAGE = DOCS.parent / "board.md"
BLOCK = re.compile(r"(<!-- table: (\S+) -->\n)(?:(?!<!--).)*(\n<!-- end of table -->)", re.DOTALL)


def rewritten(page: str) -> str:
    """Return a page with its tables as the results have them now."""
    board = {f"board-{track}": partial(board_markdown, DOCS.parent / "board", track) for track in TRACKS}
    tables = TABLES | {"claims": claims} | board
    return BLOCK.sub(lambda block: f"{block[1]}\n{tables[block[2]]()}\n{block[3]}", page)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for file in [*sorted(DOCS.glob("*.md")), BOARD_PAGE]:
        file.write_text(rewritten(file.read_text(encoding="utf-8")), encoding="utf-8")
    for name in FIGURES:
        (DOCS / f"{name}.svg").write_bytes(svg(name))


if __name__ == "__main__":
    main()
