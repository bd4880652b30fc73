"""Files of a suite folder, and one line for what is not there or not in its layout."""

import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedsdr.data.readers import read_rows
from fedsdr.errors import UserError


@contextmanager
def layout(path: Path, expected: str) -> Iterator[None]:
    """Turn what reading a file in another layout runs into, or no file, into one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"--suite-data: {path}: cannot be read: {reason}") from error
    except (
        KeyError,
        IndexError,
        TypeError,
        ValueError,
        AttributeError,
        EOFError,
        csv.Error,
    ) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"--suite-data: {path}: another layout than expected ({expected}): {what}"
        ) from error


def files_in(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a pattern, in order of name; UserError when there are none."""
    found = sorted(folder.glob(pattern))
    if not found:
        raise UserError(f"--suite-data: {folder}: no file {pattern} there")
    return found


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a .jsonl or .jsonl.gz file, or of a .csv file with a header."""
    if path.suffix != ".gz":
        if not path.is_file():
            raise UserError(f"--suite-data: {path}: no such file")
        return [row for _, row in read_rows(path)]
    with (
        layout(path, "a row of JSON on each line"),
        gzip.open(path, "rt", encoding="utf-8") as file,
    ):
        return [json.loads(line) for line in file if line.strip()]


def csv_rows(path: Path, fields: int) -> list[list[str]]:
    """Return the rows of a .csv file without header, of `fields` fields each."""
    with layout(path, f"{fields} columns, no header"):
        text = path.read_text(encoding="utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
        for number, row in enumerate(rows, 1):
            if len(row) != fields:
                raise ValueError(f"row {number} has {len(row)}")
        return rows


def text_of(row: Mapping[str, Any], name: str) -> str:
    """Return a field that must hold a text; ValueError when it is none, or empty."""
    if not isinstance(row[name], str) or not row[name].strip():
        raise ValueError(f"{name} is {row[name]!r}, not a text")
    return str(row[name])


def texts_of(row: Mapping[str, Any], name: str) -> list[str]:
    """Return a field that must hold a list of texts; TypeError when it is no list."""
    if not isinstance(row[name], list):
        raise TypeError(f"{name} is no list")
    return row[name]


def one_of(allowed: Sequence[str], value: str) -> str:
    """Return `value`; ValueError when it is not allowed."""
    if value not in allowed:
        raise ValueError(f"{value!r} is none of {', '.join(allowed)}")
    return value
