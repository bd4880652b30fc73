"""Run something in a forked child, which has torch and the model classes loaded already."""

import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from fedsdr.cli import main as cli_main

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
GROWING = ("os.mkdir", "os.rename")  # what a full disk may refuse, beside writing
CHANGING = (*GROWING, "os.remove", "os.rmdir", "os.chmod")


class Ended(NamedTuple):
    """How the child ended: `code` is -9 after SIGKILL."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def lines(self) -> list[str]:
        """The lines that a user gets for what ended the command."""
        return [line for line in self.err.splitlines() if line.startswith("fedsdr: ")]


class Child(NamedTuple):
    """A forked child that runs."""

    process: int
    out: IO[bytes]
    err: IO[bytes]
    began: float

    def end(self) -> Ended:
        """Wait for its end."""
        _, status = os.waitpid(self.process, 0)
        seconds = time.monotonic() - self.began
        texts = [os.pread(file.fileno(), 1 << 24, 0).decode() for file in (self.out, self.err)]
        self.out.close()
        self.err.close()
        return Ended(os.waitstatus_to_exitcode(status), *texts, seconds)


def started(work: Callable[[], object]) -> Child:
    """Call `work` in a child and return while it runs."""
    out, err = (os.fdopen(os.memfd_create(name), "rb") for name in ("out", "err"))
    sys.stdout.flush()
    sys.stderr.flush()
    began = time.monotonic()
    process = os.fork()
    if process == 0:
        _be_the_child(work, out.fileno(), err.fileno())
    return Child(process, out, err, began)


def forked(work: Callable[[], object], kill_after: float | None = None) -> Ended:
    """Call `work` in a child; SIGKILL it after `kill_after` seconds."""
    child = started(work)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child.process, signal.SIGKILL)
    return child.end()


def command(*arguments: object) -> Callable[[], object]:
    """Return the work of `fedsdr ARGUMENTS`."""

    def work() -> None:
        sys.argv = ["fedsdr", *map(str, arguments)]
        cli_main.main()

    return work


def at_file_operation(
    number: int, folder: Path, act: Callable[[], object], events: Sequence[str] = CHANGING
) -> None:
    """Call `act` before the n-th operation that changes files in `folder`, and each later one.

    For children alone: an audit hook cannot be removed. Files that safetensors writes are not seen,
    since it opens them in Rust, but the renaming of each is.
    """
    seen = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        writes = event == "open" and bool((arguments[2] or 0) & WRITING)
        named = (writes or event in events) and isinstance(arguments[0], str | bytes | os.PathLike)
        if named and os.fsdecode(arguments[0]).startswith(str(folder)):
            seen += 1
            if seen >= number:
                act()

    sys.addaudithook(hook)


def count_file_operations(
    folder: Path, work: Callable[[], object], events: Sequence[str] = CHANGING
) -> int:
    """Return how many operations of `work` change files in `folder`; for children alone."""
    seen = []
    at_file_operation(1, folder, lambda: seen.append(1), events)
    work()
    return len(seen)


def _be_the_child(work: Callable[[], object], out: int, err: int) -> None:
    code = 1
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else bool(stop.code)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
