import pytest

from robustill.core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ModelError,
    RobustillError,
    RunError,
    did_you_mean,
)


def test_every_error_is_a_robustill_error():
    for error in (ConfigError, DataError, CheckpointError, RunError, ModelError):
        assert issubclass(error, RobustillError)
        assert issubclass(error, ValueError)


@pytest.mark.parametrize(
    ("word", "tail"),
    [
        ("adk", "did you mean akd?"),
        ("trade", "did you mean trades?"),
        ("resnet19", "did you mean resnet18 or resnet8?"),
        ("zzz", "known: akd, resnet18, resnet8, trades"),
        ("", "known: akd, resnet18, resnet8, trades"),
    ],
)
def test_did_you_mean(word, tail):
    assert did_you_mean(word, ["trades", "akd", "resnet8", "resnet18"]) == tail
