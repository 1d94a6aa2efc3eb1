"""Pure functions of what runs and evaluations have recorded; nothing here calls a model."""

from __future__ import annotations
