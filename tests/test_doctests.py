"""The examples in the docstrings of every module."""

import doctest
import importlib
import pkgutil

import pytest

import robustill

MODULES = ["robustill", *(module.name for module in pkgutil.walk_packages(robustill.__path__, "robustill."))]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_the_examples_of_docstrings_are_correct(name):
    runner = doctest.DocTestRunner(verbose=False)
    report = []
    for test in doctest.DocTestFinder().find(importlib.import_module(name), name):
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)


def test_the_examples_of_docstrings_are_found():
    tests = doctest.DocTestFinder().find(importlib.import_module("robustill.losses"))
    assert sum(len(test.examples) for test in tests) >= 6
