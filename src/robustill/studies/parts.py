"""Parts of a study, for the job arrays of a cluster: every run belongs to exactly one part."""

from __future__ import annotations

import re
from dataclasses import dataclass

from robustill.core.errors import ConfigError
from robustill.studies.study import Study


@dataclass(frozen=True)
class Part:
    """The i-th of n parts of a study.

    The runs are dealt out to the parts in turn: first those that need no other run, in the order of the study, then
    those that need these, and so on. Which runs a part has depends on the study, i and n alone.

    Args:
        index: i, counted from 1.
        count: n.
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read "2/8", the second of eight parts.

        Raises:
            ConfigError: it is something else.
        """
        match = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", text)
        if match is None or int(match[1]) > int(match[2]):
            raise ConfigError(f"--part is {text!r}: expected i/n with 1 ≤ i ≤ n, such as 2/8")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def file_name(self) -> str:
        """The name for files of this part."""
        return f"part-{self.index}-of-{self.count}"

    def runs(self, study: Study) -> list[str]:
        """Return the names of the runs of this part, in the order in which they are dealt out."""
        return _by_depth(study)[self.index - 1 :: self.count]


def _by_depth(study: Study) -> list[str]:
    """Return the runs, those that need no other first."""
    depths: dict[str, int] = {}

    def depth(name: str) -> int:
        if name not in depths:
            depths[name] = max((depth(need) + 1 for need in study.needs[name]), default=0)
        return depths[name]

    # Sorting keeps the order of the study among runs of the same depth.
    return sorted(study.runs, key=depth)
