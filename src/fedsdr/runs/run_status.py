"""FOLDER/progress.json: what a command does in a folder now, for those who watch it.

It is there while the command runs. A killed command leaves it, with the id of a process that has
ended.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from pydantic import BaseModel

from fedsdr.file_reading import parse_json
from fedsdr.files import write_atomically
from fedsdr.progress import Progress, Step

STATUS = "progress.json"
SECONDS_BETWEEN_WRITES = 1.0


class Status(BaseModel, extra="ignore", strict=True):
    """What is in progress.json: a process, and the step that it takes, if any."""

    pid: int
    host: str
    step: Step | None


@contextlib.contextmanager
def noted_in(folder: Path, progress: Progress) -> Iterator[Progress]:
    """Yield progress that is also written to FOLDER/progress.json, until the end."""
    path, last = folder / STATUS, -SECONDS_BETWEEN_WRITES
    writer = {"pid": os.getpid(), "host": socket.gethostname()}

    def write(step: Step | None) -> None:
        nonlocal last
        last = time.monotonic()
        entry = {**writer, "step": None if step is None else asdict(step)}
        write_atomically(path, json.dumps(entry, indent=1) + "\n")

    def show(step: Step | None) -> None:
        progress.show(step)
        is_new = step is not None and not step.done
        if is_new or (step is not None and time.monotonic() - last >= SECONDS_BETWEEN_WRITES):
            write(step)

    write(None)
    try:
        yield replace(progress, show=show)
    finally:
        path.unlink(missing_ok=True)


def read_status(folder: Path) -> Status | None:
    """Return what a command does in this folder now, None if none runs there."""
    path = folder / STATUS
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    parse_json(text, Status, str(path), "remove it")
    status = Status.model_validate_json(text)
    return status if _is_alive(status) else None


def _is_alive(status: Status) -> bool:
    if status.host != socket.gethostname() or os.name == "nt":  # where the id says nothing
        return True
    try:
        os.kill(status.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
