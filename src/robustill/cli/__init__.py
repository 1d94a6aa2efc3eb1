"""The command line."""

from robustill.cli.app import main

__all__ = ["main"]
