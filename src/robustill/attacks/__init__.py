"""Attacks: they look for the worst image inside a threat."""

from robustill.attacks.pgd import LossFn, Start, pgd

__all__ = ["LossFn", "Start", "pgd"]
