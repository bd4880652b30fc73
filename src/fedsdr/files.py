"""Files that are either complete or absent: written to a temporary name, then renamed.

The temporary name is fixed, so that the next write replaces what a kill left there. Two processes
must not write the same file at once; where they could, one of them holds the folder `alone`.

Files of state have a manifest beside them, with the SHA-256 of each, so that damage is found, and a
seal with that of the manifest, so that its loss is found too (`sha256sum -c manifest.sha256`).
Private files have mode 0600 in folders of mode 0700; all others have the user's ordinary mode.
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fedsdr.errors import BusyError, DiskError, UserError
from fedsdr.file_reading import check_regular, parse_json, read_json, read_text, stands

MANIFEST, SEAL = "manifest.json", "manifest.sha256"
_FORMAT = 2  # of manifests; those of format 1 have no seal
# What the operating system refuses because of a path, a permission or a full disk.
REFUSALS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS,
    errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP,
    errno.EINVAL, errno.EIO,
)  # fmt: skip


class Manifest(BaseModel, strict=True):
    """manifest.json: file name -> digest."""

    sha256: dict[str, str]
    format: int = 1


class Kept(BaseModel, strict=True):
    """A value that can be made again, with its checksum."""

    value: Any
    check: str


@contextlib.contextmanager
def disk_errors_named(path: Path) -> Iterator[None]:
    """Turn a full disk, a missing permission or an impossible path into a DiskError with `path`."""
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        if error.errno not in (*REFUSALS, errno.ENOENT):  # ENOENT: as in /proc
            raise
        raise DiskError(f"{path}: cannot be written: {error.strerror}") from error
    except SafetensorError as error:  # wraps the operating system's error
        if "I/O" not in str(error) and "os error" not in str(error).lower():
            raise
        raise DiskError(f"{path}: cannot be written: {error}") from error


@contextlib.contextmanager
def alone(folder: Path, seconds: float = 0.0) -> Iterator[None]:
    """Lock the folder for this process. BusyError when another process holds it for longer."""
    from filelock import FileLock, Timeout

    with disk_errors_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=seconds)
        try:
            lock.acquire()
        except Timeout:
            raise BusyError(f"{folder}: another process works there; wait until it ends") from None
    try:
        yield
    finally:
        lock.release()


def made_once(path: Path, make: Callable[[Path], object], seconds: float = 3600.0) -> Path:
    """Return `path`; call `make(path)` first where it does not exist, in one process alone.

    BusyError when another process takes longer than `seconds`.
    """
    if not path.exists():
        with alone(path.parent, seconds):
            if not path.exists():
                make(path)
    return path


def write_file(path: Path, write: Callable[[Path], object], *, private: bool = False) -> None:
    """Call `write` with a temporary path in the same folder, then rename it to `path`."""
    with disk_errors_named(path):
        if path.is_dir():
            raise DiskError(f"{path}: is a folder; name a file")
        if path.exists() and not path.is_file():  # a rename would put a file in a device's place
            raise DiskError(f"{path}: is a pipe or a device; name a file")
        temporary = path.with_name(f".{path.name}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            _set_mode(temporary, private)
            _sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str, *, private: bool = False) -> None:
    """Write UTF-8 text to `path`, completely or not at all. DiskError when the disk refuses."""
    write_file(path, lambda new: new.write_text(text, encoding="utf-8"), private=private)


def kept_json(path: Path, make: Callable[[], Any], *, private: bool = False) -> Any:
    """Return the JSON value kept in `path`; make it where it is missing or damaged, and keep it.

    Where the disk refuses it is not kept: such a value can be made again.
    """
    with contextlib.suppress(UserError):
        found = read_json(path, Kept, "")
        if found["check"] == digest_without_seconds(found["value"]):
            return found["value"]
    value = make()
    text = json.dumps({"value": value, "check": digest_without_seconds(value)}) + "\n"
    with contextlib.suppress(DiskError, BusyError), alone(path.parent, seconds=60.0):
        write_atomically(path, text, private=private)
    return value


def write_folder(
    path: Path,
    write: Callable[[Path], object],
    *,
    private: bool = False,
    manifest: bool = False,
) -> None:
    """Call `write` with a new temporary folder, then rename it to `path`, with a manifest if asked.

    An existing folder is moved aside first and removed last; it is put back when the new one cannot
    take its place. What a kill left behind is removed.
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
            if manifest:
                write_manifest(temporary, temporary.iterdir())
            for file in (temporary, *temporary.iterdir()):
                _set_mode(file, private)
                _sync(file)
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
        finally:
            if old.exists() and not path.exists():
                os.replace(old, path)
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def write_manifest(folder: Path, files: Iterable[Path], *, private: bool = False) -> None:
    """Write the SHA-256 of these files of the folder, and the seal; write the files before."""
    digests = {file.name: sha256_of(file) for file in sorted(files)}
    text = json.dumps({"format": _FORMAT, "sha256": digests}, indent=2) + "\n"
    write_atomically(folder / MANIFEST, text, private=private)
    write_atomically(folder / SEAL, _seal(text), private=private)


def check_manifest(folder: Path, fix: str) -> None:
    """UserError, which ends with `fix`, when a file of the manifest, or one of the two that make it
    up, is missing or has changed.

    A folder with neither of the two was written by an older version and passes.
    """
    path, seal = folder / MANIFEST, folder / SEAL
    if not (stands(path) or stands(seal)):
        return
    text = read_text(path, fix)
    manifest = parse_json(text, Manifest, str(path), fix)
    sealed = stands(seal) or manifest.get("format", 1) > 1
    if sealed and read_text(seal, fix) != _seal(text):
        raise UserError(f"{path}: damaged (its checksum is not that of {SEAL}); {fix}")
    for name, digest in manifest["sha256"].items():
        file = folder / Path(name).name
        check_regular(file, fix)
        if sha256_of(file) != digest:
            raise UserError(f"{file}: damaged (its checksum is not that of {MANIFEST}); {fix}")


def _seal(manifest: str) -> str:
    """Return the content of the seal, in the format of the command sha256sum."""
    return f"{hashlib.sha256(manifest.encode()).hexdigest()}  {MANIFEST}\n"


def digest_without_seconds(value: Any) -> str:
    """Return the SHA-256 of a JSON value without its seconds: the same for equal runs."""
    return hashlib.sha256(json.dumps(_without_seconds(value), sort_keys=True).encode()).hexdigest()


def _without_seconds(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_seconds(v) for k, v in value.items() if "seconds" not in k}
    return [_without_seconds(v) for v in value] if isinstance(value, list | tuple) else value


def make_private(folder: Path) -> Path:
    """Create the folder where it is missing, readable by its owner alone; return it."""
    with disk_errors_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _set_mode(folder, private=True)
    return folder


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


def _set_mode(path: Path, private: bool) -> None:
    mode = 0o700 if private else 0o777 & ~_umask()
    path.chmod(mode if path.is_dir() else mode & 0o666)


@functools.cache
def _umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Flush the content to the disk before the file gets its final name."""
    if path.is_file():
        with path.open("r+b") as file:  # Windows flushes only what may be written
            os.fsync(file.fileno())
