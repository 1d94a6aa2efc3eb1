import doctest
import importlib
import pkgutil

import pytest

import robustill

MODULES = ["robustill", *(module.name for module in pkgutil.walk_packages(robustill.__path__, "robustill."))]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_the_examples_of_docstrings_are_true(name):
    runner = doctest.DocTestRunner(verbose=False)
    report = []
    for test in doctest.DocTestFinder().find(importlib.import_module(name), name):
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)


def test_there_are_examples_to_check():
    found = sum(
        len(test.examples) for test in doctest.DocTestFinder().find(importlib.import_module("robustill.losses"))
    )
    assert found >= 6
