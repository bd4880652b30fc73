"""The error that a user can fix, and the nearest name for a typo."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


class UserError(Exception):
    """Something that the user can fix, in one line that names the place and the fix.

    The command line prints it on standard error, without a traceback, and exits with code 2; a
    notebook shows the line alone.
    """

    def _render_traceback_(self) -> list[str]:
        """IPython shows these lines."""
        return [f"{type(self).__name__}: {self}"]


class DiskError(UserError):
    """The disk is full or not writable. It ends a run, unlike other faults of one client."""


class BusyError(UserError):
    """Another process holds the folder."""


class Refusal(UserError):
    """A task that a client refuses. Its text holds nothing of the client's own data or files, so it
    may be sent to the server."""


def one_line(text: str, limit: int = 300) -> str:
    """Return text from elsewhere for a log or a record: one line of printable characters, cut at
    `limit`."""
    words = " ".join(text[: 4 * limit].split())
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)
    return line if len(line) <= limit else f"{line[:limit]}..."


def printable(text: str) -> str:
    """Return text for a terminal: control characters, surrogates and bidirectional overrides, which
    could steer it, become escapes. Line breaks and tabs stay."""
    return _STEERING.sub(lambda sign: ascii(sign[0])[1:-1], text)


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return `'; did you mean X?'` for the choice closest to `name`, or '' when none is close."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def choose(name: str, choices: Mapping[str, T], what: str) -> T:
    """Return `choices[name]`; raise UserError that lists the choices and the nearest one."""
    if name not in choices:
        listed = ", ".join(choices)
        raise UserError(f"{what}: unknown name '{name}' (one of: {listed}){nearest(name, choices)}")
    return choices[name]
