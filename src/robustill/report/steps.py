"""The progress of a report on stderr, which appears once it has taken two seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from robustill.core.progress import Progress

_PATIENCE = 2.0
"""Seconds after which the progress is shown."""

T = TypeVar("T")


class Steps:
    """Shows how many parts of each step are done, once the whole work has taken a while.

    Args:
        shown: whether to print anything.

    Example:
        ``for run in steps.over(runs, "reading", "runs"): ...``
    """

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        self._start = time.monotonic()

    def over(self, parts: Sequence[T], label: str, unit: str) -> Iterator[T]:
        """Yield the parts, and count each as done when the next one is asked for.

        Args:
            parts: the parts of a step.
            label: the name of the step.
            unit: the name of the parts, in the plural.
        """
        with Progress(label, total=len(parts), unit=unit, shown=False) as progress:
            for part in parts:
                yield part
                progress.shown = self._shown and time.monotonic() - self._start > _PATIENCE
                progress.advance(1)
