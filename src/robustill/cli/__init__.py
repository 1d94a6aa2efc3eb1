"""The command line: one command for each verb of the library, from training to the report."""

from robustill.cli.app import main

__all__ = ["main"]
