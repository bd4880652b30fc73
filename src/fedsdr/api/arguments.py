"""What a call of `fedsdr.run` or `fedsdr.compare` is given, as a configuration and as files."""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsdr.config import Config, nested, with_values
from fedsdr.data.hub import read_hub_rows
from fedsdr.data.readers import READERS
from fedsdr.errors import UserError
from fedsdr.file_reading import check_regular
from fedsdr.files import make_private, write_file

Rows = Any  # a path, hub:ORG/NAME, a list of rows, or a table with to_pandas() or to_json()


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """Return `config` with the values of dotted keys that are not None, paths relative to the
    working directory. UserError as for `--set`."""
    for key, value in settings.items():
        if value is not None:
            value = str(value) if isinstance(value, Path) else value
            config = with_values(config, nested(key, value), f"{key}={value!r}", Path.cwd())
    return config


@contextlib.contextmanager
def with_data(
    config: Config, data: str | Path | Mapping[str, Rows] | None, out: Path
) -> Iterator[Config]:
    """Yield `config` with these clients. Those of a mapping are written to OUT/data, one private
    file each, which is removed again where no run follows.

    UserError for a name that cannot name a file, for rows of another kind, and for rows or clients
    that differ from those of an earlier run in OUT.
    """
    if not isinstance(data, Mapping):
        yield with_settings(config, {"data.clients": data, "data.source": data and ""})
        return
    folder, new = out / "data", not (out / "data").exists()
    files = {}
    for name, rows in data.items():
        suffix, content = _content(name, rows)
        files[folder / f"{name}{suffix}"] = content
    if not files:
        raise UserError("data: names no client")
    _check_earlier(folder, files)
    try:
        make_private(folder)
        for path, content in files.items():
            _write(path, content)
        yield with_settings(config, {"data.clients": folder, "data.source": ""})
    finally:
        if new and not any((out / name).exists() for name in ("config.toml", "cells")):
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # it holds something else
                out.rmdir()


def _check_earlier(folder: Path, files: Mapping[Path, bytes]) -> None:
    for path, content in files.items():
        if path.exists() and path.read_bytes() != content:
            raise UserError(f"{path}: has other rows of this client; choose another out")
    for path in sorted(folder.glob("[!.]*")):
        if path.suffix.lower() in READERS and path not in files:
            raise UserError(f"{path}: has rows that data does not name; choose another out")


def _write(path: Path, content: bytes) -> None:
    write_file(path, lambda new: new.write_bytes(content), private=True)


def _content(name: str, rows: Rows) -> tuple[str, bytes]:
    """Return the suffix and the content of a client's file."""
    where = f"data: client '{name}'"
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise UserError(f"{where}: cannot name a file; use letters, digits and ._-")
    if isinstance(rows, str) and rows.startswith("hub:"):
        return ".jsonl", _lines(where, [row for _, row in read_hub_rows(rows)])
    if isinstance(rows, str | Path):
        path = Path(rows).expanduser()
        check_regular(path, "give a file with its rows", "no such file")
        if path.suffix.lower() not in READERS:
            raise UserError(f"{where}: {path}: must end in {', '.join(READERS)}")
        return path.suffix.lower(), path.read_bytes()
    if hasattr(rows, "to_pandas"):  # polars, pyarrow, datasets
        rows = rows.to_pandas()
    if hasattr(rows, "to_json"):  # pandas
        text = rows.to_json(orient="records", lines=True, force_ascii=False, double_precision=15)
        return ".jsonl", text.encode()
    if isinstance(rows, Sequence):
        return ".jsonl", _lines(where, rows)
    raise UserError(
        f"{where}: is a {type(rows).__name__}; give a file, hub:ORG/NAME, a data frame or a list "
        "of rows"
    )


def _lines(where: str, rows: Sequence[Any]) -> bytes:
    try:
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: a row is not JSON: {error}") from None
