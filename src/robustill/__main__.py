"""Runs the command line: ``python -m robustill``, or ``torchrun --nproc-per-node N -m -- robustill``."""

from __future__ import annotations

from robustill.cli.app import main

if __name__ == "__main__":
    main()
