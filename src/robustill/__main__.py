"""``python -m robustill`` is the command line; so is ``torchrun --nproc-per-node N -m -- robustill``."""

from __future__ import annotations

from robustill.cli.app import main

if __name__ == "__main__":
    main()
