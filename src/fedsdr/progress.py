"""Progress of long steps: log lines and bars, shown as the caller decides."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

Advance = Callable[[int], None]  # is given the number of units done since the last call


@dataclass(frozen=True)
class Progress:
    """`log` writes a line; `bar(what, total)` opens a bar and yields what advances it."""

    log: Callable[[str], None]
    bar: Callable[[str, int], AbstractContextManager[Advance]]


@contextmanager
def _no_bar(what: str, total: int) -> Iterator[Advance]:
    yield lambda done: None


SILENT = Progress(log=lambda line: None, bar=_no_bar)
