"""Tables for the terminal. A number is never cut: a table that is too wide becomes blocks."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from fedsdr.cli.table_layout import (
    Rows,
    blocks_of,
    by_model,
    constants_in_title,
    marked,
    narrowed,
    widths_of,
)
from fedsdr.evaluation.model_tables import tables_of
from fedsdr.evaluation.results import Table
from fedsdr.files import write_atomically
from fedsdr.research.diagnose.summary import Table as ExplainedTable
from fedsdr.research.diagnose.summary import markdown_of

GAP = 2  # columns between two columns of a table
UNLIMITED = 10_000  # columns of a file or pipe, unless COLUMNS says otherwise


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
    *,
    as_json: bool = False,
) -> None:
    """Write NAME.json and NAME.md into a folder, and print each table below its meaning."""
    write_atomically(folder / f"{name}.json", json.dumps(found, indent=2, allow_nan=False) + "\n")
    write_atomically(folder / f"{name}.md", markdown_of(title, tables, notes))
    if as_json:
        print_json(found)
        return
    for table in tables:
        wide_console().print(f"\n{table.meaning}", highlight=False, markup=False)
        print_tables([(table.title, table.rows)])
    print_tables([], notes)
    print(f"\nin {folder}: {name}.json, {name}.md")


def print_json(value: object) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=2, allow_nan=False))


def print_next(**commands: str) -> None:
    """Print the commands that come next, by what they are for, in one line."""
    shown = (f"{command} ({purpose.replace('_', ' ')})" for purpose, command in commands.items())
    print(f"next: {', '.join(shown)}")


def print_results(results: Mapping[str, Any], *, as_json: bool = False) -> None:
    """Print scores and losses of base, global and client models, and the cost of the run.

    As JSON, that is results.json without what it has of each row.
    """
    if as_json:
        print_json({key: value for key, value in results.items() if key != "examples"})
        return
    if results["clients"]:
        said = (
            f"{results['method']} with {results['algorithm']}, {results['rounds']} rounds, seed "
            f"{results['seed']}"
        )
        print(said)
        print_tables(tables_of(results))
        print()
    else:
        print("no test rows, so nothing was measured (data.test_fraction)")
    cost = results["cost"]
    for kind in ("tokens", "seconds"):
        print(f"{kind}: " + ", ".join(f"{name} {n:,.0f}" for name, n in cost[kind].items()))
    print(f"bytes: {cost['bytes_up'] / 1e6:,.1f} MB up, {cost['bytes_down'] / 1e6:,.1f} MB down")


def wide_console() -> Console:
    """Return a console as wide as the terminal; without a terminal, as wide as COLUMNS says, or as
    the text."""
    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdigit() and int(columns) else UNLIMITED
    return Console() if Console().is_terminal else Console(width=width)


def _print_table(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Print a table in the first of these layouts that fits: as it is; what is constant in the
    title; a row per model; a block per variant."""
    console, cells = wide_console(), marked(rows)
    console.print()
    shorter, fewer = constants_in_title(title, cells)
    layouts = [(title, cells), (shorter, fewer), (shorter, by_model(fewer))]
    for may_wrap in (False, True):
        for name, shown in layouts[may_wrap:]:
            widths = narrowed(shown, console.width - GAP * (len(shown[0]) - 1))
            if widths and (may_wrap or widths == widths_of(shown)):
                console.print(name, markup=False, highlight=False, style="italic")
                _print_grid(console, shown, widths)
                return
    console.print(shorter, markup=False, highlight=False, style="italic")
    for name, block in blocks_of(fewer, console.width):
        console.print(name, markup=False, highlight=False, style="bold")
        grid = RichTable.grid(padding=(0, GAP, 0, 0))
        for row in block:
            grid.add_row(*(Text(cell.text, cell.style) for cell in row))
        console.print(grid)


def _print_grid(console: Console, rows: Rows, widths: Sequence[int]) -> None:
    box = SIMPLE_HEAD if console.is_terminal else None
    padding = (0, GAP - (box is not None), 0, 0)  # the box has a column of its own in between
    table = RichTable(box=box, show_edge=False, pad_edge=False, padding=padding)
    header, *body = rows
    for i, (cell, width) in enumerate(zip(header, widths, strict=True)):
        table.add_column(escape(cell.text), justify="right" if i else "left", width=width)
    for row in body:
        table.add_row(*(Text(cell.text, cell.style) for cell in row))
    console.print(table)
