"""How long steps say where they are, without knowing whether a person is watching."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

Advance = Callable[[int], None]  # so many units more are done


@dataclass(frozen=True)
class Progress:
    """`log` writes a line; `bar(what, total)` opens a bar and gives the function that moves it."""

    log: Callable[[str], None]
    bar: Callable[[str, int], AbstractContextManager[Advance]]


@contextmanager
def _no_bar(what: str, total: int) -> Iterator[Advance]:
    yield lambda done: None


SILENT = Progress(log=lambda line: None, bar=_no_bar)
