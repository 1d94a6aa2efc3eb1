import pytest

from robustill.core import formatting


@pytest.mark.parametrize(
    ("share", "text"), [(0.034, "+3.4"), (-0.034, "−3.4"), (0.0, "0.0"), (-0.0001, "0.0"), (0.0004, "0.0")]
)
def test_points_have_a_sign_unless_zero(share, text):
    assert formatting.points(share) == text


@pytest.mark.parametrize(
    ("norm", "eps", "text"),
    [
        ("linf", 8 / 255, "8/255"),
        ("linf", 0.2, "0.2"),
        ("linf", 0.0, "0"),
        ("l2", 128 / 255, "0.502"),
        ("linf", 0.03, "0.03"),
    ],
)
def test_radius_is_a_fraction_of_255_for_linf(norm, eps, text):
    assert formatting.radius(norm, eps) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.25, "4.2 s"), (59.4, "59 s"), (93, "1 min 33 s"), (7260, "2 h 01 min")]
)
def test_duration(seconds, text):
    assert formatting.duration(seconds).replace(formatting.SPACE, " ") == text


def test_join_with_and():
    assert [formatting.join_with_and(list(parts)) for parts in ("a", "ab", "abc")] == ["a", "a and b", "a, b and c"]


def test_shorten_keeps_the_end_of_a_name():
    assert formatting.shorten("short") == "short"
    assert formatting.shorten("x" * 40 + "seed-3", 12) == "…xxxxxseed-3"


def test_flatten_formats_nested_values():
    nested = {"a": {"b": [1, 2.5], "c": None}, "d": True, "e": {}}
    assert list(formatting.flatten(nested)) == [("a.b", "1, 2.5"), ("a.c", "none"), ("d", "yes"), ("e", "none")]


def test_no_text_in_a_csv_file_is_a_formula():
    rows = [["=cmd", "+1.5", "-x", "@sum", "a=b", -0.5, None, float("nan")]]
    assert formatting.csv_text(rows) == "'=cmd,+1.5,'-x,'@sum,a=b,-0.5,,\n"


SHIPPED = {
    "attacked_as_shipped": {
        "robust_accuracy_alone": {"transfer": 0.25, "square": 0.5},
        "attacks": {"transfer": "pgd-ce, 20 steps", "square": "square, 2000 queries"},
        "not_tried": ["FAB", "magic"],
    },
    "deployment": {
        "bytes": 123456,
        "milliseconds": {
            "1": {"median": 0.0561, "quartiles": [0.055, 0.06]},
            "32": {"median": 12.34, "quartiles": [12, 13]},
        },
        "threads": 2,
        "runtime": "onnxruntime 1",
    },
}


def test_no_text_leaves_its_comment_or_its_cell():
    for end in ("\n", "\r", "\r\n", "\u2028"):
        assert len(formatting.latex_comment(f"2026{end}\\input{{/etc/passwd}}").splitlines()) == 1
        assert formatting.markdown_table(["a"], [[f"b{end}| c"]]) == ["| a |", "|---|", "| b \\| c |"]


def test_what_attacked_a_file_and_what_it_costs_is_told_in_parts():
    assert formatting.as_shipped(SHIPPED) == (
        "robust under transfer alone 0.250 (pgd-ce, 20 steps)",
        "robust under square alone 0.500 (square, 2000 queries)",
        "not tried: FAB and magic",
        "123,456 bytes; 0.0561 ms at batch 1 (quartiles 0.055–0.06); 12.3 ms at batch 32 (quartiles 12–13); 2 threads, "
        "onnxruntime 1",
    )
    assert formatting.as_shipped({"seed": 0}) == ()


@pytest.mark.parametrize(
    "damage",
    [
        {"attacked_as_shipped": {}},
        {"attacked_as_shipped": {"robust_accuracy_alone": 3, "attacks": {}, "not_tried": []}},
        {"deployment": {"bytes": "many", "milliseconds": {}, "threads": 1, "runtime": ""}},
        {
            "deployment": {
                "bytes": 1,
                "milliseconds": {"1": {"median": 1, "quartiles": [1]}},
                "threads": 1,
                "runtime": "",
            }
        },
    ],
)
def test_damaged_conditions_are_told_nothing_of(damage):
    assert formatting.as_shipped({**SHIPPED, **damage}) == ()
