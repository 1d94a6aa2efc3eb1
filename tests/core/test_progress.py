import pytest

from robustill.core import progress
from robustill.core.formatting import clock
from robustill.core.progress import LONG_WAIT, Progress, announce


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (75, "1 min 15 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (4020, "1 h 07 min"),
        (90_000, "25 h 00 min"),
    ],
)
def test_clock(seconds, words):
    assert clock(seconds) == words


def test_a_long_wait_is_announced_in_one_line_and_a_short_one_is_not(capsys):
    announce("long", 75.2)
    announce("short", LONG_WAIT - 0.01)
    announce("on\x1bterminal", LONG_WAIT, "if half of the images are robust")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "long: about 1 min 15 s on this machine",
        "on\\x1bterminal: about 5 s on this machine, if half of the images are robust",
    ]


class Time:
    """A clock that the test moves."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def time(monkeypatch):
    moved = Time()
    monkeypatch.setattr(progress, "time", moved)
    return moved


def test_the_line_has_share_rate_time_left_and_note(time):
    bar = Progress("training", total=4000, unit="images")
    assert bar.line() == "training   0% · 0 images/s · estimating"
    time.now += 10
    bar.advance(1000, "robust 0.41")
    assert bar.line() == "training  25% · 100 images/s · 30 s left · robust 0.41"
    time.now += 20
    bar.advance(3000)
    assert bar.line() == "training 100% · 133 images/s · 30 s · robust 0.41"


def test_work_of_an_earlier_process_does_not_count_as_speed(time):
    bar = Progress("training", total=4000, done=2000, unit="images")
    time.now += 10
    bar.advance(1000)
    assert bar.line() == "training  75% · 100 images/s · 10 s left"


def test_no_work_is_shown_as_done():
    assert Progress("evaluating", total=0, unit="images").line().startswith("evaluating 100%")


def test_a_log_gets_occasional_lines_and_a_last_one(time, capsys):
    with Progress("training", total=100, unit="images") as bar:
        for _ in range(100):
            time.now += 0.31
            bar.advance(1)
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    shares = ["training   2%", "training  51%", "training 100%"]
    assert [line.split(" · ")[0] for line in lines] == shares
    assert lines[0].endswith("30 s left")
    assert printed.out == ""
    assert "\r" not in printed.err


def test_a_terminal_line_is_overwritten(time, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress("training", total=10, unit="images") as bar:
        for number in range(10):
            time.now += 1
            bar.advance(1, "a long note" if number == 0 else "")
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    frames = printed.rstrip("\n").split("\r")[1:]
    assert frames[0].startswith("━━" + "─" * 18 + " training  10%")
    assert frames[-1].startswith("━" * 20 + " training 100%")
    # The shorter second line covers what the first one left.
    assert len(frames[1]) >= len(frames[0])


def test_a_hidden_bar_prints_nothing(time, capsys):
    with Progress("", total=10, unit="images", shown=False) as bar:
        time.now += 100
        bar.advance(5)
    assert capsys.readouterr().err == ""


def test_an_exception_leaves_the_last_line(time, capsys):
    def work():
        with Progress("training", total=10, unit="images") as bar:
            time.now += 1
            bar.advance(5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert capsys.readouterr().err == "training  50% · 5 images/s · 1 s left\n"


def test_a_log_of_short_work_does_not_say_how_long_it_takes(time, capsys):
    with Progress("checking", total=10, unit="images") as bar:
        for _ in range(10):
            time.now += 0.5
            bar.advance(1)
    assert capsys.readouterr().err == "checking 100% · 2 images/s · 5 s\n"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_work_that_ends_before_the_delay_prints_nothing(time, capsys, monkeypatch, is_terminal):
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    for seconds, shown in ((0.3, False), (0.5, True)):
        with Progress("reading", total=5, unit="images", delay=2) as bar:
            for _ in range(5):
                time.now += seconds
                bar.advance(1)
        assert ("reading" in capsys.readouterr().err) == shown


def test_long_work_says_so_before_the_delay(time, capsys):
    with Progress("checking", total=100, unit="images", delay=20) as bar:
        time.now += 1
        bar.advance(2)
        assert capsys.readouterr().err == "checking   2% · 2 images/s · 49 s left\n"
