"""A run on disk: its directory, its checkpoints, its records of evaluations and its training dynamics."""
