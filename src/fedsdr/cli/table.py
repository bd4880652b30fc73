"""Tables for the terminal. A number is never cut: a table that is too wide becomes blocks."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from fedsdr.evaluation.model_tables import tables_of
from fedsdr.evaluation.results import Table
from fedsdr.files import write_atomically
from fedsdr.research.diagnose.summary import Table as ExplainedTable
from fedsdr.research.diagnose.summary import markdown_of

WIDTH_OF_FILES = 160  # output into a file or pipe has no width of its own


def print_tables(tables: Iterable[Table], notes: Iterable[str] = ()) -> None:
    """Print tables, first column left-aligned, the rest right-aligned, and the notes below them."""
    for title, rows in tables:
        _print_table(title, rows)
    for note in notes:
        wide_console().print(note, highlight=False, markup=False)


def write_and_print(
    folder: Path,
    name: str,
    found: Mapping[str, Any],
    title: str,
    tables: Sequence[ExplainedTable],
    notes: Sequence[str] = (),
) -> None:
    """Write NAME.json and NAME.md into a folder, and print each table below its meaning."""
    write_atomically(folder / f"{name}.json", json.dumps(found, indent=2, allow_nan=False) + "\n")
    write_atomically(folder / f"{name}.md", markdown_of(title, tables, notes))
    for table in tables:
        wide_console().print(f"\n{table.meaning}", highlight=False, markup=False)
        print_tables([(table.title, table.rows)])
    print_tables([], notes)
    print(f"\nin {folder}: {name}.json, {name}.md")


def print_results(results: Mapping[str, Any]) -> None:
    """Print scores and losses of base, global and client models, and the cost of the run."""
    if results["clients"]:
        title = (
            f"{results['method']} with {results['algorithm']}, {results['rounds']} rounds, seed "
            f"{results['seed']}"
        )
        print_tables(tables_of(results), [title])
    else:
        print("no test rows, so nothing was measured (data.test_fraction)")
    cost = results["cost"]
    for kind in ("tokens", "seconds"):
        print(f"{kind}: " + ", ".join(f"{name} {n:,.0f}" for name, n in cost[kind].items()))
    print(f"bytes: {cost['bytes_up'] / 1e6:,.1f} MB up, {cost['bytes_down'] / 1e6:,.1f} MB down")


def wide_console(width: int = WIDTH_OF_FILES) -> Console:
    """Return a console as wide as the terminal, or as `width` if there is no terminal."""
    return Console() if Console().is_terminal else Console(width=width)


def _print_table(title: str, rows: Sequence[Sequence[str]]) -> None:
    frame = 3 * len(rows[0]) + 1  # borders and padding
    natural = sum(_widths(rows)) + frame
    console = wide_console(max(WIDTH_OF_FILES, natural))
    if natural > console.width:
        title, rows = _constants_in_title(title, rows)
    header, *body = rows
    widths, room = _widths(rows), console.width - frame
    words = _widths([[max(cell.split() or [""], key=cell_len) for cell in row] for row in rows])
    if sum(words) <= room:  # cells may be wrapped, but not within a word
        table = RichTable(title=escape(title), show_lines=sum(widths) > room)
        while sum(widths) > room:
            widest = max(range(len(widths)), key=lambda i: (widths[i] > words[i], widths[i]))
            widths[widest] -= 1
        for i, (name, width) in enumerate(zip(header, widths, strict=True)):
            table.add_column(escape(name), justify="right" if i else "left", width=width)
        for row in body:
            table.add_row(*map(escape, row))
        console.print(table)
        return
    console.print(title, markup=False, highlight=False, style="italic")
    for row in body:
        block = RichTable.grid(padding=(0, 2))
        for name, value in zip(header, row, strict=True):
            block.add_row(escape(name), escape(value))
        console.print(block, "")


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(cell_len, column)) for column in zip(*rows, strict=True)]


def _constants_in_title(
    title: str, rows: Sequence[Sequence[str]]
) -> tuple[str, Sequence[Sequence[str]]]:
    """Move the columns with the same value in every row into the title."""
    header, *columns = zip(*rows, strict=True)
    same = [column for column in columns if len(rows) > 2 and len(set(column[1:])) == 1]
    kept = [column for column in columns if column not in same]
    facts = [f"{column[0]} {column[1]}" for column in same]
    return "; ".join([title, *facts]), list(zip(header, *kept, strict=True))
