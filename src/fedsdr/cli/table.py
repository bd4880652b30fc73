"""Tables for the terminal. A number is never cut: a table that is too wide becomes blocks."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from fedsdr.distill.records import Audit
from fedsdr.evaluation.results import Table, table_of

WIDTH_OF_FILES = 160  # output into a file or pipe has no width of its own


def print_tables(tables: Iterable[Table], notes: Iterable[str] = ()) -> None:
    """Print tables, first column left-aligned, the rest right-aligned, and the notes below them."""
    for title, rows in tables:
        _print_table(title, rows)
    for note in notes:
        wide_console().print(note, highlight=False, markup=False)


def print_explained(
    tables: Iterable[tuple[str, str, Sequence[Sequence[str]]]], notes: Iterable[str] = ()
) -> None:
    """Print tables of (title, meaning, rows), each below its meaning, and then the notes."""
    for title, meaning, rows in tables:
        wide_console().print(f"\n{meaning}", highlight=False, markup=False)
        print_tables([(title, rows)])
    print_tables([], notes)


def print_results(results: Mapping[str, Any]) -> None:
    """Print scores and losses of base, global and client models, and the cost of the run."""
    if results["clients"]:
        title = (
            f"{results['method']} with {results['algorithm']}, {results['rounds']} rounds, seed "
            f"{results['seed']}; score [95 % interval over test rows], loss in nats per token"
        )
        print_tables([(title, table_of(results))])
    else:
        print("no test rows, so nothing was measured (data.test_fraction)")
    cost = results["cost"]
    for kind in ("tokens", "seconds"):
        print(f"{kind}: " + ", ".join(f"{name} {n:,.0f}" for name, n in cost[kind].items()))
    print(f"bytes: {cost['bytes_up'] / 1e6:,.1f} MB up, {cost['bytes_down'] / 1e6:,.1f} MB down")


def print_audit(audits: Mapping[str, Audit]) -> None:
    """Print how many answers of each client were rewritten, and why the others were not."""
    header = ["client", "answers", "rewritten", "length", "new tokens", "cached"]
    rows = [[*header, "kept raw because"]]
    for client, audit in audits.items():
        numbers = [str(audit.answers), f"{audit.rewritten} ({audit.share_rewritten:.0%})"]
        numbers += [f"x{audit.length_ratio:.2f}", str(audit.new_tokens), str(audit.from_cache)]
        reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(audit.kept_raw.items()))
        rows.append([client, *numbers, reasons])
    print_tables([("rewriting", rows)])


def wide_console(width: int = WIDTH_OF_FILES) -> Console:
    """Return a console as wide as the terminal, or as `width` if there is no terminal."""
    return Console() if Console().is_terminal else Console(width=width)


def _print_table(title: str, rows: Sequence[Sequence[str]]) -> None:
    natural = sum(_widths(rows)) + _frame(rows)
    console = wide_console(max(WIDTH_OF_FILES, natural))
    if natural > console.width:
        title, rows = _constants_in_title(title, rows)
    header, *body = rows
    if widths := _fitting_widths(rows, console.width):
        table = RichTable(title=escape(title), show_lines=widths != _widths(rows))
        for i, (name, width) in enumerate(zip(header, widths, strict=True)):
            table.add_column(escape(name), justify="left" if i == 0 else "right", width=width)
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


def _frame(rows: Sequence[Sequence[str]]) -> int:
    return 3 * len(rows[0]) + 1  # borders and padding


def _fitting_widths(rows: Sequence[Sequence[str]], available: int) -> list[int] | None:
    """Return column widths that wrap no cell within a word; None if there are none."""
    widths, room = _widths(rows), available - _frame(rows)
    least = _widths([[max(cell.split() or [""], key=cell_len) for cell in row] for row in rows])
    if sum(least) > room:
        return None
    while sum(widths) > room:
        widest = max(range(len(widths)), key=lambda i: (widths[i] > least[i], widths[i]))
        widths[widest] -= 1
    return widths


def _constants_in_title(
    title: str, rows: Sequence[Sequence[str]]
) -> tuple[str, Sequence[Sequence[str]]]:
    """Move the columns with the same value in every row into the title."""
    header, *body = rows
    if len(body) < 2:
        return title, rows
    same = [i > 0 and len({row[i] for row in body}) == 1 for i in range(len(header))]
    facts = [f"{name} {body[0][i]}" for i, name in enumerate(header) if same[i]]
    kept = [
        [cell for cell, constant in zip(row, same, strict=True) if not constant] for row in rows
    ]
    return "; ".join([title, *facts]), kept
