"""Evaluation of a model by a suite of attacks: records of every image, gradient masking and transfer."""
