"""The lines of `fedsdr chat`: what is typed, and answers side by side where there is room."""

import contextlib
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from itertools import zip_longest

import click

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


class Below:
    """Answers one below the other; on a terminal each is written as it grows."""

    def __init__(self) -> None:
        self._model, self._written = "", ""

    def show(self, model: str, text: str) -> None:
        """Write what is new of a model's answer so far."""
        if model != self._model:
            click.secho(f"{model}:", bold=True)
            self._model, self._written = model, ""
        text = text.strip().rstrip("\ufffd")  # the bytes of a character may not be complete
        if text.startswith(self._written):
            click.echo(text[len(self._written) :], nl=False)
            self._written = text

    def end(self, model: str, text: str) -> None:
        """Write the rest of the answer."""
        self.show(model, text)
        click.echo("\n")

    def close(self) -> None:
        """Nothing is left to write."""


class Beside:
    """Answers side by side, drawn anew as they grow."""

    def __init__(self, models: Sequence[str], columns: int) -> None:
        from rich.console import Console
        from rich.live import Live

        self._answers, self._columns = dict.fromkeys(models, ""), columns
        self._live = Live(console=Console(), refresh_per_second=8)
        self._live.start()

    def show(self, model: str, text: str) -> None:
        """Show a model's answer so far, or all of it."""
        from rich.text import Text

        self._answers[model] = text.strip()
        lines = side_by_side(list(self._answers.items()), self._columns)
        self._live.update(Text("\n".join(lines)))

    end = show

    def close(self) -> None:
        """Leave the answers on the terminal."""
        self._live.stop()
        click.echo()


def terminal_columns() -> int:
    """Return the width of the terminal; 0, which is narrow, for a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
