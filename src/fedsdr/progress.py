"""Progress of long steps: where they stand and what is left, shown as the caller decides."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from fedsdr.types import Decoding, Generate, Generation, GenerationRequest


class Advance(Protocol):
    """Is given the units and the tokens done since the last call."""

    def __call__(self, done: int, tokens: int = 0, /) -> None: ...


@dataclass(frozen=True)
class Step:
    """Where a long step stands."""

    what: str
    total: int
    done: int = 0
    tokens: int = 0
    seconds: float = 0.0
    after: float | None = None  # seconds of what follows the step; None: unknown
    until: str = "left"  # what the step and `after` lead to
    within: str = ""  # the longer work that the step is part of

    @property
    def left(self) -> float | None:
        """The seconds left of the step; None before its first unit is done."""
        return self.seconds / self.done * (self.total - self.done) if self.done else None

    @property
    def text(self) -> str:
        """The step in one line: units, tokens a second, time left."""
        parts = [self.within] if self.within else []
        parts.append(f"{self.what} {self.done:,}/{self.total:,}")
        if self.tokens and self.seconds:
            parts.append(f"{self.tokens / self.seconds:,.0f} tokens/s")
        if self.left is not None and self.after is not None:
            parts.append(f"{duration(self.left + self.after)} {self.until}")
        elif self.left is not None:
            parts.append(f"{duration(self.left)} left of this step")
        return ", ".join(parts)


@dataclass(frozen=True)
class Progress:
    """`log` writes a line; `show` is given a step whenever it moves, None when it ends;
    `round_done` is given the record of each round."""

    log: Callable[[str], None]
    show: Callable[[Step | None], None] = lambda step: None
    round_done: Callable[[Mapping[str, Any]], None] = lambda record: None
    after: float | None = None  # seconds of the command after all steps shown here; None: unknown
    within: str = ""  # what all steps shown here are part of

    @contextmanager
    def bar(
        self, what: str, total: int, after: float | None = None, until: str = "left"
    ) -> Iterator[Advance]:
        """Show a step of `total` units and yield what advances it.

        `after`: seconds of what is to come before `until`, if they are known.
        """
        if after is not None and self.after is not None:
            after, until = after + self.after, "left"
        began, done, tokens = time.monotonic(), 0, 0

        def show() -> None:
            seconds = time.monotonic() - began
            self.show(Step(what, total, done, tokens, seconds, after, until, self.within))

        def advance(units: int, of_tokens: int = 0, /) -> None:
            nonlocal done, tokens
            done, tokens = done + units, tokens + of_tokens
            show()

        show()
        try:
            yield advance
        finally:
            self.show(None)


def counted(generate: Generate, advance: Advance, units: int = 1) -> Generate:
    """Return `generate` that advances a step by `units` and its new tokens with each answer."""

    def counting(requests: Sequence[GenerationRequest], decoding: Decoding) -> Iterator[Generation]:
        for answer in generate(requests, decoding):
            advance(units, answer.new_tokens)
            yield answer

    return counting


def duration(seconds: float) -> str:
    """Return a time for people: 45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def no_advance(done: int, tokens: int = 0, /) -> None:
    """The `Advance` of a step that is not shown."""


SILENT = Progress(log=lambda line: None)
