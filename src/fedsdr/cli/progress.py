"""Bars with time left on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fedsdr.errors import printable
from fedsdr.progress import Advance, Progress


def console_progress() -> Progress:
    """Return the progress that fits standard error: bars on a terminal, else lines."""
    return _on_terminal() if sys.stderr.isatty() else Progress(_line, _plain_bar)


def _line(text: str) -> None:
    print(printable(f"{time.strftime('%H:%M:%S')} {text}"), file=sys.stderr, flush=True)


@contextmanager
def _plain_bar(what: str, total: int) -> Iterator[Advance]:
    """Say when a step starts, then where it is at most every 30 seconds, with the time left."""
    began = last = time.monotonic()
    done = 0
    _line(what)

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if 0 < done < total and now - last >= 30:
            last = now
            left = (now - began) / done * (total - done)
            _line(f"{what}: {done} of {total}, {left:.0f} s left")

    yield advance


def _on_terminal() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    console = Console(stderr=True)

    @contextmanager
    def bar(what: str, total: int) -> Iterator[Advance]:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=console, transient=True) as rich_progress:
            task = rich_progress.add_task(what, total=total)
            yield lambda count: rich_progress.advance(task, count)

    return Progress(
        log=lambda text: console.print(printable(text), highlight=False, markup=False), bar=bar
    )
