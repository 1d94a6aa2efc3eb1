"""Compute the same function in less time: folded copies, windows around a patch, convolutions as matrix products."""
