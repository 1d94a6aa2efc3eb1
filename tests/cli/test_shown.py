"""`robustill show RECIPE`: the file of recipes is what the recipes say, and printing from it needs no torch."""

from __future__ import annotations

import subprocess
import sys

from robustill.cli.shown import FILE, read_recipes, recipes_text


def test_the_file_of_recipes_is_what_the_recipes_say() -> None:
    assert FILE.read_text(encoding="utf-8") == recipes_text(), "python docs/make_reference.py"


def test_a_recipe_is_shown_without_torch() -> None:
    code = (
        "import sys; from robustill.cli.app import main; sys.argv = ['robustill', 'show', 'digits_akd']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'pydantic'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == read_recipes()["digits_akd"]
