import re

import pytest

from fedsdr.cli.table import print_tables

HEADER = ["client", "metric", "base loss ↓", "global loss ↓", "client loss ↓", "score"]
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


def test_a_table_that_is_too_wide_loses_constant_columns_then_has_a_row_per_model(printed):
    assert "metric rouge_l" not in printed(110)
    in_title = printed(82)
    assert in_title.count("rouge_l") == in_title.count("metric rouge_l") == 1
    assert "0.820  0.367 [0.237, 0.497]" in in_title
    by_model = [line.split() for line in printed(70).splitlines()]
    header = ["client", "model", "loss", "↓", "score"]
    assert header in by_model
    at = by_model.index(["code_codealpaca", "base", "1.036", "0.367", "[0.237,", "0.497]"])
    assert by_model[at + 1 : at + 3] == [["global", "0.881"], ["client", "0.820"]]
    assert ["base", "loss", "↓", "1.036"] in [line.split() for line in printed(40).splitlines()]


VARIANTS = [
    ["variant", "model", "loss ↓", "loss - baseline"],
    ["plain", "global", "2.000", ""],
    ["fedsdr", "global", "1.800", "-0.200 [-0.250, -0.150]"],
    ["fedsd", "global", "1.900", "-0.100 [-0.160, -0.040]"],
    ["fedsdr", "client", "1.700", "-0.200 [-0.250, +0.050]"],
    ["plain", "client", "1.900", ""],
]


def test_a_narrow_comparison_has_a_block_per_variant(printed):
    lines = [line.split() for line in printed(44, rows=VARIANTS).splitlines()]
    at = lines.index(["fedsdr"])
    assert lines[at + 1 : at + 4] == [
        ["model", "global"],
        ["loss", "↓", "1.800"],
        ["loss", "-", "baseline", "-0.200", "[-0.250,", "-0.150]"],
    ]


@pytest.fixture
def styled(monkeypatch, capsys):
    """Return a function: the cells that a wide terminal shows bold, and those that it dims."""

    def shown(rows):
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "200")
        print_tables([("", rows)])
        body = capsys.readouterr().out.partition("──\n")[2]
        cells = {code: re.findall(rf"\x1b\[{code}m *([^\x1b]+?) *\x1b", body) for code in (1, 2)}
        return cells[1], cells[2]

    return shown


def test_the_best_difference_is_bold_only_if_its_interval_is_clear_of_the_others(styled):
    separate = [*VARIANTS[:3], ["fedsd", "global", "1.9", "-0.100 [-0.140, -0.040]"], *VARIANTS[4:]]
    assert styled(VARIANTS) == ([], [])
    assert styled(separate) == (["-0.200 [-0.250, -0.150]"], [])
    worse = [*VARIANTS[:2], ["fedsd", "global", "2.1", "+0.100 [+0.040, +0.140]"]]
    assert styled(worse) == ([], [])  # the baseline is better


def test_the_best_model_of_a_row_is_bold_by_the_direction_of_its_measure(styled):
    row = ["bank", "0.900 [0.800, 0.950]", "0.300 [0.200, 0.400]", "0.500 [0.410, 0.600]"]
    for arrow, best in (("↑", 1), ("↓", 2), ("", None)):
        header = ["client", *(f"{model} rate {arrow}" for model in ("base", "global", "client"))]
        assert styled([header, row]) == ([row[best]] if best else [], [])


def test_measures_on_fewer_than_20_rows_are_grey_and_say_so(styled):
    header = ["client", "test rows", "score ↑"]
    few, enough = ["bank", "19", "0.500"], ["clinic", "20", "0.600"]
    assert styled([header, few, enough]) == ([], ["bank", "19 few rows", "0.500"])
    cells = [["", "raw"], ["length", "1.2 [0.9, 1.4] (19)"], ["copied", "0.3 [0.1, 0.5] (20)"]]
    assert styled(cells) == ([], ["1.2 [0.9, 1.4] (19, few rows)"])


@pytest.mark.parametrize("columns", ["80", "200"])
def test_a_pipe_gets_aligned_text_without_boxes_that_fits_columns(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    print_tables([("scores", (HEADER, *ROWS))])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= int(columns)
    assert not set(text) & set("│┃─━\x1b…")
    first, second = (line for line in text.splitlines() if "[0." in line)
    assert first.index("[0.") == second.index("[0.")


def test_names_in_brackets_are_printed_as_they_are(printed):
    assert "[bold]bank" in printed(80, rows=[["client"], ["[bold]bank"]])


def test_without_a_terminal_a_table_is_as_wide_as_it_must_be(capsys, monkeypatch):
    for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE"):  # rich reads them as a terminal
        monkeypatch.delenv(name, raising=False)
    print_tables([("scores", [["a" * 200, "b"], ["x", "1"]])])
    assert "a" * 200 in capsys.readouterr().out
