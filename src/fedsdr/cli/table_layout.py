"""Layouts of a table that fit a width. A number and its interval are never cut or broken."""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from rich.cells import cell_len

from fedsdr.evaluation.results import MODELS

FEW_ROWS = 20  # a measurement on fewer rows says little
_ROW_COUNTS = ("test rows", "rows", "answers")  # columns that count what is behind a row
_COUNT = re.compile(r"\((\d+)\)$")  # the same, at the end of a single cell
_INTERVAL = re.compile(r"(\S+) \[(\S+), (\S+)\]")


class Cell(NamedTuple):
    """A cell's text and how the terminal shows it: "", "bold" or "dim"."""

    text: str
    style: str = ""


Rows = Sequence[Sequence[Cell]]  # the first row is the header


def marked(rows: Sequence[Sequence[str]]) -> Rows:
    """Return the cells: bold where a value is the best beyond chance, dim on few rows.

    Values are compared between the models of a row (columns `MODEL MEASURE`), or between the
    variants of a column.
    """
    header, *body = rows
    cells = [
        [_few_rows(name, text) for name, text in zip(header, row, strict=True)] for row in body
    ]
    for number, column in _best_of_models(header, body) + _best_of_variants(header, body):
        cells[number][column] = Cell(cells[number][column].text, "bold")
    counts = [i for i, name in enumerate(header) if name in _ROW_COUNTS]
    for row in cells:
        if any(row[i].style for i in counts):
            row[:] = [Cell(cell.text, "dim") for cell in row]
    return [[Cell(name) for name in header], *cells]


def _few_rows(column: str, text: str) -> Cell:
    count = text if column in _ROW_COUNTS else (_COUNT.findall(text) or [""])[0]
    if not count.isdigit() or int(count) >= FEW_ROWS:
        return Cell(text)
    return Cell(f"{text} few rows" if column in _ROW_COUNTS else f"{text[:-1]}, few rows)", "dim")


def _best_of_models(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
    """Return (row, column) of the values that are the best of their row's models."""
    better = header.index("better") if "better" in header else None
    places = []
    for measure, columns in _model_columns(header).items():
        for number, row in enumerate(body):
            direction = measure[-1:] if better is None else row[better]
            best = _best([row[i] for i in columns], direction)
            places += [] if best is None else [(number, columns[best])]
    return places


def _best_of_variants(
    header: Sequence[str], body: Sequence[Sequence[str]]
) -> list[tuple[int, int]]:
    """Return (row, column) of the differences that are the best of the variants with one kind of
    model; that of the baseline, which has none, is 0."""
    if header[0] != "variant" or "model" not in header:
        return []
    last = header.index("model") + 1
    places = []
    for kind in dict.fromkeys(tuple(row[1:last]) for row in body):
        rows = [i for i, row in enumerate(body) if tuple(row[1:last]) == kind]
        for column, name in enumerate(header):
            if name.endswith(" - baseline"):
                values = [body[i][column] or "0 [0, 0]" for i in rows]
                best = _best(values, header[column - 1][-1])  # the arrow of the value's column
                places += (
                    [] if best is None or not body[rows[best]][column] else [(rows[best], column)]
                )
    return places


def _best(values: Sequence[str], direction: str) -> int | None:
    """Return the index of the value whose whole interval is better than all others', if any."""
    sign = {"↓": -1.0, "↑": 1.0}.get(direction)
    found = [_INTERVAL.match(text) for text in values]
    if sign is None or len(found) < 2 or not all(found):
        return None
    ends = [sorted(sign * float(x.replace(",", "")) for x in m.groups()[1:]) for m in found if m]
    best = max(range(len(ends)), key=lambda i: ends[i])
    clear = all(ends[best][0] > high for i, (_, high) in enumerate(ends) if i != best)
    return best if clear else None


def _model_columns(header: Sequence[str]) -> dict[str, list[int]]:
    """Return measure -> its columns, for the columns `MODEL MEASURE` after the first."""
    found: dict[str, list[int]] = {}
    for i, name in enumerate(header):
        model, _, measure = name.partition(" ")
        if i and model in MODELS:
            found.setdefault(measure, []).append(i)
    return {measure: columns for measure, columns in found.items() if len(columns) == len(MODELS)}


def widths_of(rows: Rows) -> list[int]:
    """Return the width of each column."""
    return [max(cell_len(cell.text) for cell in column) for column in zip(*rows, strict=True)]


def narrowed(rows: Rows, room: int) -> list[int] | None:
    """Return widths of the columns whose sum is at most `room`, or None if a word would be cut.

    Texts are wrapped between words, numbers not at all.
    """
    widths = widths_of(rows)
    least = [max(_unbreakable(cell.text) for cell in column) for column in zip(*rows, strict=True)]
    if sum(least) > room:
        return None
    while sum(widths) > room:
        widest = max(range(len(widths)), key=lambda i: (widths[i] > least[i], widths[i]))
        widths[widest] -= 1
    return widths


def _unbreakable(text: str) -> int:
    is_number = text[:1].isdigit() or (text[:1] in "+-x" and text[1:2].isdigit())
    return cell_len(text) if is_number else max(map(cell_len, text.split()), default=0)


def constants_in_title(title: str, rows: Rows) -> tuple[str, Rows]:
    """Move the columns with the same value in every row into the title."""
    header, *columns = [list(column) for column in zip(*rows, strict=True)]
    same = [
        column for column in columns if len(rows) > 2 and len({c.text for c in column[1:]}) == 1
    ]
    kept = [column for column in columns if column not in same]
    facts = [f"{column[0].text} {column[1].text}" for column in same if column[1].text]
    return "; ".join([title, *facts]), list(zip(header, *kept, strict=True))


def by_model(rows: Rows) -> Rows:
    """Return the table with one row per model in place of columns `MODEL MEASURE`, if it has such.

    What the rows of one former row share is said once.
    """
    header, *body = rows
    columns = _model_columns([cell.text for cell in header])
    if not columns:
        return rows
    moved = {i for of in columns.values() for i in of}
    rest = [i for i in range(1, len(header)) if i not in moved]
    long = [[header[0], Cell("model"), *(Cell(m or "value") for m in columns)]]
    long[0] += [header[i] for i in rest]
    for row in body:
        for number, model in enumerate(MODELS):
            shared = (
                [row[0], *(row[i] for i in rest)] if not number else [Cell("")] * (len(rest) + 1)
            )
            values = [row[of[number]] for of in columns.values()]
            long.append([shared[0], Cell(model), *values, *shared[1:]])
    return long


def blocks_of(rows: Rows, room: int) -> list[tuple[str, Rows]]:
    """Return a block for each value of the first column: its name, and a line per other column.

    The rows of a block stand side by side if they fit into `room`, else they are blocks themselves.
    """
    header, *body = rows
    blocks: list[tuple[str, Rows]] = []
    for name, group in groupby(body, key=lambda row: row[0].text):
        several = list(group)
        found = list(zip(header, *several, strict=True))[1:]
        if sum(widths_of(found)) + 2 * len(several) <= room:
            blocks.append((name, found))
        else:
            blocks += [(name, list(zip(header, row, strict=True))[1:]) for row in several]
    return blocks
