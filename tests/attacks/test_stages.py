from __future__ import annotations

from robustill.attacks.stages import stages_of


def short(stages):
    return [(stage.name, stage.loss, stage.variants, stage.steps, stage.repeats) for stage in stages]


def test_the_standard_version():
    assert short(stages_of("standard", "linf", 10)) == [
        ("apgd-ce", "ce", 1, 100, 1),
        ("apgd-t", "dlr-targeted", 9, 100, 1),
        ("fab-t", "", 9, 100, 1),
        ("square", "", 1, 5000, 1),
    ]


def test_l1_has_restarts_and_fewer_targets_in_larger_balls_first():
    stages = stages_of("standard", "l1", 10)
    assert [stage.variants for stage in stages] == [5, 5, 9, 1]
    assert [stage.shrinking for stage in stages] == [True, True, False, False]


def test_plus_and_rand():
    assert [(stage.name, stage.variants) for stage in stages_of("plus", "l2", 10)] == [
        ("apgd-ce", 5),
        ("apgd-dlr", 5),
        ("fab", 5),
        ("square", 1),
        ("apgd-t", 9),
        ("fab-t", 9),
    ]
    assert short(stages_of("rand", "linf", 10)) == [("apgd-ce", "ce", 1, 100, 20), ("apgd-dlr", "dlr", 1, 100, 20)]


def test_few_classes_have_few_targets_and_losses_that_exist():
    assert short(stages_of(["apgd-t", "fab-t"], "linf", 4))[0][1:3] == ("dlr-targeted", 3)
    assert short(stages_of(["apgd-t", "fab-t"], "linf", 3))[0][1:3] == ("ce-targeted", 2)
    assert [stage.name for stage in stages_of("rand", "linf", 2)] == ["apgd-ce"]


def test_a_robust_image_costs_what_its_passes_add_up_to():
    assert [stage.units for stage in stages_of("standard", "linf", 10)] == [202, 1818, 2700, 5001]
    # Five restarts of three balls, each with one evaluation of its start.
    assert stages_of("standard", "l1", 10)[0].units == 5 * 103 * 2
    assert stages_of("rand", "linf", 10)[0].units == 101 * 2 * 20
    assert stages_of(["fab"], "linf", 10, restarts=1)[0].units == 100 * 12
