"""Progress and tables in a notebook."""

import html
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fedsdr.cli.progress import console_progress
from fedsdr.evaluation.results import Table
from fedsdr.progress import SILENT, Progress, Step


def progress_here(quiet: bool) -> Progress:
    """Return the progress for this program: bars in a notebook or on a terminal, else lines."""
    if quiet:
        return SILENT
    from rich.console import Console

    return Progress(print, _CellBar().show) if Console().is_jupyter else console_progress()


@dataclass
class _CellBar:
    """A bar a step in the output of a cell, drawn anew at most five times a second."""

    handle: Any = None  # of the bar that is shown
    last: float = 0.0

    def show(self, step: Step | None) -> None:
        from IPython.display import HTML, display

        if step is None:
            self.handle = None
            return
        now = time.monotonic()
        if self.handle and step.done < step.total and now - self.last < 0.2:
            return
        bar = f'<progress value="{step.done}" max="{step.total}"></progress>'
        drawn, self.last = HTML(f"{bar} {html.escape(step.text)}"), now
        if self.handle:
            self.handle.update(drawn)
        else:
            self.handle = display(drawn, display_id=True)


def tables_html(tables: Iterable[Table]) -> str:
    """Return tables as HTML; the first row of each is its header."""
    return "".join(
        f"<p>{html.escape(title)}</p><table>{''.join(_row(row, i) for i, row in enumerate(rows))}"
        "</table>"
        for title, rows in tables
    )


def _row(cells: Iterable[str], number: int) -> str:
    tag = "td" if number else "th"
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
