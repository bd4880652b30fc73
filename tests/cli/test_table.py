import re

import pytest

from fedsdr.cli.table import print_tables

HEADER = ["client", "metric", "base loss", "global loss", "client loss", "score"]
ROWS = [
    ["code_codealpaca", "rouge_l", "1.036", "0.881", "0.820", "0.367 [0.237, 0.497]"],
    ["finance_fingpt", "rouge_l", "3.173", "0.887", "0.444", "0.500 [0.300, 0.700]"],
]


@pytest.fixture
def printed(monkeypatch, capsys):
    """Return a function: what is printed on a terminal with that many columns."""

    def at(columns, title="scores", rows=(HEADER, *ROWS)):
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", str(columns))
        print_tables([(title, rows)])
        return re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)

    return at


@pytest.mark.parametrize("columns", [30, 40, 60, 80, 100, 200])
def test_no_number_is_cut_on_a_narrow_terminal(printed, columns):
    text = printed(columns)
    assert "…" not in text
    assert all(len(line) <= columns for line in text.splitlines())
    for word in {word for row in ROWS for cell in row for word in cell.split()}:
        assert word in text


def test_a_table_that_is_too_wide_loses_constant_columns_then_wraps_then_becomes_blocks(printed):
    assert "metric rouge_l" not in printed(110)
    in_title = printed(85)
    assert in_title.count("rouge_l") == in_title.count("metric rouge_l") == 1
    assert "0.367 [0.237, 0.497]" in in_title
    wrapped, blocks = printed(75), printed(40)
    assert "0.367 [0.237, 0.497]" not in wrapped
    assert "0.820" in next(line for line in wrapped.splitlines() if "code_codealpaca" in line)
    assert "client       code_codealpaca" in blocks


def test_names_in_brackets_are_printed_as_they_are(printed):
    assert "[bold]bank" in printed(80, rows=[["client"], ["[bold]bank"]])


def test_without_a_terminal_a_table_is_as_wide_as_it_must_be(capsys):
    print_tables([("scores", [["a" * 200, "b"], ["x", "1"]])])
    assert "a" * 200 in capsys.readouterr().out
