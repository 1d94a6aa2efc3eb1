from __future__ import annotations

from typing import get_args

import pytest

from robustill.attacks import stages as module
from robustill.attacks.stages import resolve_stages
from robustill.core.errors import ConfigError


def short(stages):
    return [(stage.name, stage.loss, stage.variants, stage.steps, stage.repeats) for stage in stages]


def test_the_standard_version():
    assert short(resolve_stages("standard", "linf", 10)) == [
        ("apgd-ce", "ce", 1, 100, 1),
        ("apgd-t", "dlr-targeted", 9, 100, 1),
        ("fab-t", "", 9, 100, 1),
        ("square", "", 1, 5000, 1),
    ]


def test_l1_has_restarts_fewer_targets_and_larger_balls():
    stages = resolve_stages("standard", "l1", 10)
    assert [stage.variants for stage in stages] == [5, 5, 9, 1]
    assert [stage.shrinking for stage in stages] == [True, True, False, False]


def test_every_version_and_every_attack_can_be_named():
    assert [len(resolve_stages(version, "linf", 10)) for version in get_args(module.Version)] == [4, 6, 2]
    names = ["apgd-ce", "apgd-dlr", "apgd-t", "apgd-ce-t", "fab", "fab-t", "square"]
    losses = ["ce", "dlr", "dlr-targeted", "ce-targeted", "", "", ""]
    assert [(stage.name, stage.loss) for stage in resolve_stages(names, "linf", 10)] == [
        *zip(names, losses, strict=True)
    ]


def test_the_plus_and_rand_versions():
    assert [(stage.name, stage.variants) for stage in resolve_stages("plus", "l2", 10)] == [
        ("apgd-ce", 5),
        ("apgd-dlr", 5),
        ("fab", 5),
        ("square", 1),
        ("apgd-t", 9),
        ("fab-t", 9),
    ]
    assert short(resolve_stages("rand", "linf", 10)) == [("apgd-ce", "ce", 1, 100, 20), ("apgd-dlr", "dlr", 1, 100, 20)]


def test_few_classes_have_few_targets_and_defined_losses():
    assert short(resolve_stages(["apgd-t", "fab-t"], "linf", 4))[0][1:3] == ("dlr-targeted", 3)
    assert short(resolve_stages(["apgd-t", "fab-t"], "linf", 3))[0][1:3] == ("ce-targeted", 2)
    assert [stage.loss for stage in resolve_stages("rand", "linf", 3)] == ["ce", "dlr"]
    assert [(stage.name, stage.loss) for stage in resolve_stages("rand", "linf", 2)] == [("apgd-ce", "ce")]


def test_a_list_that_leaves_no_attack_is_refused():
    with pytest.raises(ConfigError, match=r"version is \['apgd-dlr'\] alone, .* for 2 classes: add apgd-ce"):
        resolve_stages(["apgd-dlr"], "linf", 2)
    assert [stage.name for stage in resolve_stages(["apgd-dlr", "square"], "linf", 2)] == ["square"]


def test_passes_of_a_robust_image():
    assert [stage.passes_per_image for stage in resolve_stages("standard", "linf", 10)] == [202, 1818, 2700, 5001]
    # Five restarts of three balls, each with one evaluation of its start.
    assert resolve_stages("standard", "l1", 10)[0].passes_per_image == 5 * 103 * 2
    assert resolve_stages("rand", "linf", 10)[0].passes_per_image == 101 * 2 * 20
    assert resolve_stages(["fab"], "linf", 10, restarts=1)[0].passes_per_image == 100 * 12


@pytest.mark.parametrize(("norm", "variants"), [("linf", [1, 9, 9, 1]), ("l2", [1, 9, 9, 1]), ("l1", [5, 5, 9, 1])])
def test_many_classes_have_nine_targets(norm, variants):
    assert [stage.variants for stage in resolve_stages("standard", norm, 100)] == variants


def test_given_budgets_replace_the_defaults():
    stages = resolve_stages(["apgd-ce-t", "fab-t", "fab", "square"], "l1", 100, restarts=2, targets=3, repeats=4)
    assert [(stage.loss, stage.targeted, stage.variants, stage.repeats, stage.shrinking) for stage in stages] == [
        ("ce-targeted", True, 3, 4, False),
        ("", True, 3, 1, False),
        ("", False, 2, 1, False),
        ("", False, 1, 1, False),
    ]


@pytest.mark.parametrize(
    ("version", "budget", "line"),
    [
        ("standrad", {}, "version 'standrad' is unknown: did you mean standard"),
        (["fab", "squar"], {}, "attack 'squar' is unknown: did you mean square"),
        ([], {}, "empty list of attacks"),
        *(
            ("standard", {what: 0}, f"^{what} is 0, expected a whole number of at least 1")
            for what in "steps queries restarts targets".split()
        ),
    ],
)
def test_invalid_versions_and_budgets_are_refused(version, budget, line):
    with pytest.raises(ConfigError, match=line):
        resolve_stages(version, "linf", 10, **budget)
