"""Architectures: one module for each family, its weights named as in the public checkpoints of that family."""
