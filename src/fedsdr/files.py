"""Files that are either whole or not there: written to a temporary name, then renamed.

The temporary name is always the same, so that what a kill left there is written over. So two
processes must not write the same file at once: where they could, one of them holds it `alone`.
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedsdr.errors import BusyError, DiskError, UserError

_REFUSALS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS,
    errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG,
)  # fmt: skip


@contextlib.contextmanager
def disk_errors_named(path: Path) -> Iterator[None]:
    """Turn a full disk, a missing right or an impossible path into one line that names `path`."""
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        raise DiskError(f"{path}: cannot be written: {error.strerror}") from error
    except SafetensorError as error:  # it reports a full disk in its own way
        if "I/O" not in str(error) and "os error" not in str(error).lower():
            raise
        raise DiskError(f"{path}: cannot be written: {error}") from error


@contextlib.contextmanager
def alone(folder: Path, seconds: float = 0.0) -> Iterator[None]:
    """Hold the folder for this process. BusyError when another has not let go of it in time."""
    from filelock import FileLock, Timeout

    with disk_errors_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=seconds)
        try:
            lock.acquire()
        except Timeout:
            raise BusyError(f"{folder}: another process works there; wait for its end") from None
    try:
        yield
    finally:
        lock.release()


def made_once(path: Path, make: Callable[[Path], object], seconds: float = 3600.0) -> Path:
    """Return `path`, after `make(path)` where it is not there yet, by one of all processes.

    BusyError when another is at it for longer than that.
    """
    if not path.exists():
        with alone(path.parent, seconds):
            if not path.exists():
                make(path)
    return path


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path in the same folder, then rename it to `path`."""
    temporary = path.with_name(f".{path.name}.tmp")
    with disk_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            _sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write UTF-8 text to `path`, whole or not at all. DiskError when the disk refuses."""
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def json_lines(path: Path) -> list[Any]:
    """Return the JSON value of each line. A line ends with a line feed and nothing else: a text in
    it may have U+2028 and its like, at which `str.splitlines` would cut."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def read_json(path: Path, if_missing: str) -> dict[str, Any]:
    """Return a file's JSON object; UserError, with `if_missing` as the hint, if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: missing; {if_missing}") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: must hold a JSON object")
    return found


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a new temporary folder, then put it in the place of `path`.

    A folder that is already there is moved aside first and removed last; if the new one cannot
    take its place, it is put back. What a kill left behind is cleared away.
    """
    temporary, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    with disk_errors_named(path):
        if old.exists() and not path.exists():  # killed between the two renames
            os.replace(old, path)
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            write(temporary)
            for file in temporary.iterdir():
                _sync(file)
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
        finally:
            if old.exists() and not path.exists():
                os.replace(old, path)
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def numbered_folders(folder: Path, prefix: str) -> dict[int, Path]:
    """Return number -> path of the folders named `prefix` and a number, in order of the number.

    Anything else in the folder is left out: other programs put files of their own there.
    """
    found = {
        int(number): path
        for path in folder.glob(f"{prefix}*")
        if (number := path.name.removeprefix(prefix)).isdecimal() and path.is_dir()
    }
    return dict(sorted(found.items()))


def _sync(path: Path) -> None:
    """Flush the content to the disk before the file gets its final name."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
