import pytest

from robustill.report.plots import legend_columns, legend_height, legend_label, percent_text, share_limits


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0%"), (0.125, "12.5%"), (0.15, "15%"), (1.0, "100%"), (0.0125, "1.25%")]
)
def test_a_tick_is_printed_as_it_is(value, text):
    assert percent_text(value, 0) == text


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.2, 0.6), (0.5, 0.5), (0.99, 1.0), (0.0, 0.0)])
def test_an_axis_of_shares_holds_the_data_and_little_more(low, high):
    bottom, top = share_limits(low, high)
    assert 0 <= bottom <= low <= high <= top <= 1.02
    assert max(0.1, high - low) - 1e-9 <= top - bottom <= 1.12 * (high - low) + 0.15


def test_long_names_have_a_column_of_their_own():
    assert legend_columns(["PGD-AT", "PGD-AT + EMA"]) == 2
    assert legend_columns(["AKD", "AKD, teacher's last epoch"]) == 1
    assert legend_height(["a"] * 20) == pytest.approx(3 * 0.17)
    assert legend_height([]) == 0


def test_a_name_with_an_underscore_stays_in_the_legend():
    assert not legend_label("_mine").startswith("_")
    assert legend_label("x" * 40) == "…" + "x" * 25
