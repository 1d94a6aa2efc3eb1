"""The typed configuration of a run: its schema, recipes, overrides, and the split of the data."""
