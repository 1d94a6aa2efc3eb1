"""Analysis of what runs and evaluations recorded: pure functions that call no model."""

__all__ = [
    "calibration",
    "difficulty",
    "human_agreement",
    "human_labels",
    "memorisation",
    "runs",
    "statistics",
    "summary",
    "training_dynamics",
    "transfer",
]
