import pytest

from robustill.analysis.method_names import METHOD_NAMES, average_of, method_name
from robustill.methods import METHODS


def test_every_method_has_a_usual_name():
    assert METHOD_NAMES.keys() == METHODS.keys()
    assert len(set(METHOD_NAMES.values())) == len(METHOD_NAMES)


@pytest.mark.parametrize(
    ("config", "average", "name"),
    [
        ({"method": {"name": "at"}}, None, "PGD-AT"),
        ({"method": {"name": "at"}, "optim": {"ema": 0.99, "awp": None}}, "ema", "PGD-AT + EMA"),
        ({"method": {"name": "trades"}, "optim": {"awp": 0.005}}, "swa", "TRADES + AWP + SWA"),
        ({"method": {"name": "kdswa"}}, "swa", "KD+SWA"),
        ({"method": {"name": "my_pkg.my_mod:Mine"}}, None, "Mine"),
        ({}, None, "unknown method"),
        ({"method": "odd", "optim": 3}, None, "unknown method"),
    ],
)
def test_a_configuration_has_the_name_that_papers_use(config, average, name):
    assert method_name(config, average) == name


def test_the_average_is_read_off_a_checkpoint():
    names = ("best", "best-ema", "last-swa", "epoch-20", "weights.pt")
    assert [average_of(each) for each in names] == [None, "ema", "swa", None, None]
