"""Where a long step stands, in one line, and when such a line is written."""

import time

import pytest

from fedsdr.cli.progress import Lines
from fedsdr.progress import Progress, Step, duration


def test_a_step_says_units_tokens_a_second_and_the_time_left_of_all():
    step = Step("round 2 of 4, rows", 48, done=12, tokens=2400, seconds=24.0)
    # 2 s a row, 36 rows left: 72 s, and 60 s of what follows
    assert step.text == "round 2 of 4, rows 12/48, 100 tokens/s, 72 s left of this step"
    known = Step("rows", 48, 12, 2400, 24.0, after=60.0, until="until evaluation")
    assert known.text == "rows 12/48, 100 tokens/s, 2 min until evaluation"
    assert Step("loading", 1).text == "loading 0/1"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(45.2, "45 s"), (125, "2 min"), (12_000, "3 h 20 min"), (187_200, "2 d 4 h")],
)
def test_a_time_is_said_in_the_units_that_people_use(seconds, text):
    assert duration(seconds) == text


def test_what_follows_the_step_and_the_command_that_it_is_part_of_are_added():
    shown = []
    progress = Progress(print, shown.append, after=100.0)
    with progress.bar("rows", 2, after=10.0, until="until evaluation") as advance:
        advance(1, 7)
    moved, ended = shown[-2:]
    assert (moved.done, moved.tokens, moved.after, moved.until) == (1, 7, 110.0, "left")
    assert ended is None


def test_a_step_that_does_not_move_has_a_line_only_when_none_was_written_for_a_while():
    written = []
    lines = Lines(written.append, pause=0.2)
    progress = Progress(lines.log, lines.show)
    with progress.bar("rows", 100) as advance:
        for _ in range(50):
            advance(1)
        progress.log("a fact")
        time.sleep(0.1)
        soon = list(written)
        time.sleep(0.35)
    assert soon.count("a fact") == 1
    assert len(soon) <= 2  # of 50 moves
    assert len(written) > len(soon)  # though nothing moved
    assert written[-1].startswith("rows 50/100")
    count = len(written)
    time.sleep(0.3)
    assert len(written) == count  # the step has ended
