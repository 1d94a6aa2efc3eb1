"""Methods by name and by import path."""

from __future__ import annotations

from typing import Any

import pytest

from robustill.core.errors import ConfigError
from robustill.methods import Method, build_method


class NeedsOne(Method):
    def __init__(self, *, one: float) -> None:
        super().__init__()
        self.one = one


HERE = f"{__name__}:NeedsOne"


def test_a_method_is_built_from_an_import_path() -> None:
    assert isinstance(build_method(HERE, one=2.0), NeedsOne)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("at", {"alpha": 1}, r"^method at has no option 'alpha': it has no options$"),
        ("akd", {"alhpa": 1}, r"^method akd has no option 'alhpa': did you mean alpha"),
        ("nowhere.at_all:Method", {}, "^method 'nowhere.at_all:Method' cannot be imported: No module named 'nowhere'"),
        (f"{__name__}:Nothing", {}, "cannot be imported: .*Nothing"),
        (HERE, {}, "NeedsOne with {}: .*'one'"),
    ],
)
def test_invalid_names_and_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_method(name, **options)
