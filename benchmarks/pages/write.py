"""What do the recorded results say? Writes the tables of docs/results/*.md, and its figures.

    python benchmarks/pages/write.py

About 15 seconds. A table stands between <!-- table: NAME --> and <!-- end of table -->; everything comes from the files
of benchmarks/results alone.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from claims import claims
from figures import FIGURES, svg
from tables import TABLES

DOCS = Path(__file__).parents[2] / "docs" / "results"
BLOCK = re.compile(r"(<!-- table: (\S+) -->\n)(?:(?!<!--).)*(\n<!-- end of table -->)", re.DOTALL)


def rewritten(page: str) -> str:
    """Return a page with its tables as the results have them now."""
    tables = TABLES | {"claims": claims}
    return BLOCK.sub(lambda block: f"{block[1]}\n{tables[block[2]]()}\n{block[3]}", page)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for file in sorted(DOCS.glob("*.md")):
        file.write_text(rewritten(file.read_text(encoding="utf-8")), encoding="utf-8")
    for name in FIGURES:
        (DOCS / f"{name}.svg").write_bytes(svg(name))


if __name__ == "__main__":
    main()
