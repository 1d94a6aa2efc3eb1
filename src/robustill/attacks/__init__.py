"""Attacks, which search for the worst image inside a threat."""

from __future__ import annotations

from robustill.attacks.pgd import LossFn, Start, pgd

__all__ = ["LossFn", "Start", "pgd"]
