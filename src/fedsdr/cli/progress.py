"""A bar with the time left on a terminal, a plain line every 15 seconds elsewhere."""

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fedsdr.errors import printable
from fedsdr.progress import Progress, Step

PAUSE = 15.0  # seconds between two lines on one step


def console_progress() -> Progress:
    """Return the progress that fits standard error: a bar on a terminal, else lines."""
    if sys.stderr.isatty():
        terminal = _terminal()
        return Progress(log=terminal.log, show=terminal.show)
    lines = Lines(_print_line)
    return Progress(log=lines.log, show=lines.show)


def _print_line(text: str) -> None:
    print(printable(f"{time.strftime('%H:%M:%S')} {text}"), file=sys.stderr, flush=True)


@dataclass
class Lines:
    """Writes log lines at once, and where a step stands when `pause` seconds had no line.

    A thread looks at the clock meanwhile, so a step that does not move is seen to go on.
    """

    write: Callable[[str], None]
    pause: float = PAUSE
    _step: Step | None = None
    _last: float = -PAUSE
    _ended: threading.Event = field(default_factory=threading.Event)

    def log(self, text: str) -> None:
        self._last = time.monotonic()
        self.write(text)

    def show(self, step: Step | None) -> None:
        opened, self._step = self._step is None and step is not None, step
        if step is None:
            self._ended.set()
        elif opened:
            self._ended = threading.Event()
            threading.Thread(target=self._watch, args=(self._ended,), daemon=True).start()

    def _watch(self, ended: threading.Event) -> None:
        while not ended.is_set():
            step = self._step
            if step is not None and time.monotonic() - self._last >= self.pause:
                self.log(step.text)
            ended.wait(min(1.0, self.pause))


@dataclass
class _Terminal:
    """Writes log lines above a bar that lasts as long as its step."""

    console: Any
    columns: tuple[Any, ...]
    _bar: Any = None

    def log(self, text: str) -> None:
        self.console.print(printable(text), highlight=False, markup=False)

    def show(self, step: Step | None) -> None:
        from rich.progress import Progress as RichProgress

        if step is None:
            self._bar.stop()
            self._bar = None
        elif self._bar is None:
            self._bar = RichProgress(*self.columns, console=self.console, transient=True)
            self._bar.add_task(step.text, total=step.total)
            self._bar.start()
        else:
            self._bar.update(0, description=step.text, completed=step.done)


def _terminal() -> _Terminal:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

    text = TextColumn("{task.description}", markup=False)
    return _Terminal(Console(stderr=True), (BarColumn(8), text, TimeElapsedColumn()))
