"""Training: a method trains a model, with teachers, against an attack inside a threat."""
