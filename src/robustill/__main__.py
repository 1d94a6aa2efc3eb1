"""``python -m robustill`` is the command line; so is ``torchrun --nproc-per-node N -m -- robustill``."""

from robustill.cli import main

if __name__ == "__main__":
    main()
