"""The lines of `fedsdr chat`: what is typed, and answers side by side where there is room."""

import contextlib
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from itertools import zip_longest

GAP = " | "
LEAST_COLUMN = 36  # columns of a model's answer beside others
HELP = """/client NAME  the client whose own model answers
/reset        forget the turns so far
/help         these lines
/quit         end, as an empty line does"""


def questions() -> Iterator[str]:
    """Yield what the user types until an empty line or the end of the input.

    On a terminal with the editing and the history of readline, where Python has it.
    """
    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):  # Windows has line editing of its own
            import readline  # noqa: F401
    while True:
        try:
            line = input("> ") if terminal else sys.stdin.readline()
        except EOFError:
            return
        if not line.strip():
            return
        yield line.strip()


def fits(answers: int, columns: int) -> bool:
    """Return whether so many answers have room beside each other."""
    return columns >= answers * (LEAST_COLUMN + len(GAP)) - len(GAP)


def side_by_side(answers: Sequence[tuple[str, str]], columns: int) -> list[str]:
    """Return the lines of (model, answer) beside each other, wrapped between words."""
    width = (columns + len(GAP)) // len(answers) - len(GAP)
    wrapped = [
        [model, *(row for line in text.splitlines() for row in textwrap.wrap(line, width) or [""])]
        for model, text in answers
    ]
    rows = zip_longest(*wrapped, fillvalue="")
    return [GAP.join(f"{cell:<{width}}" for cell in row).rstrip() for row in rows]


def terminal_columns() -> int:
    """Return the width of the terminal; 0, which is narrow, for a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
