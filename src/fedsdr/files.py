"""Files that are either whole or not there: written to a temporary name, then renamed."""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from fedsdr.errors import UserError


@contextlib.contextmanager
def disk_errors_named(path: Path) -> Iterator[None]:
    """Turn a full disk, a missing right or a read-only disk into one line that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path in the same folder, then rename it to `path`."""
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    with disk_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            _sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write UTF-8 text to `path`, whole or not at all. UserError when the disk refuses."""
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a new temporary folder, then put it in the place of `path`.

    A folder that is already there is moved aside first and removed last, so that at no moment
    both are gone.
    """
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    old = path.with_name(f".{path.name}.old{os.getpid()}")
    with disk_errors_named(path):
        try:
            temporary.mkdir(parents=True)
            write(temporary)
            for file in temporary.iterdir():
                _sync(file)
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Make the content reach the disk before its new name does."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
