"""Data files -> (number, row): .jsonl, .json, .csv and .parquet.

Every fault is one line with the file and the line. Numbers count from 1: lines of the file for
.jsonl and .csv (the line on which a row begins), rows for .json and .parquet.
"""

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedsdr.errors import UserError

Rows = Iterator[tuple[int, Any]]


def place(path: Path, number: int) -> str:
    """Return how errors name a row of a file: `'FILE, line 7'`."""
    return f"{path}, {'line' if path.suffix.lower() in ('.jsonl', '.csv') else 'row'} {number}"


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the columns of each row; see `place` for what the number counts.

    UserError for a file that is missing, empty, not UTF-8 (a byte order mark is accepted), broken
    or of an unknown ending, and for a row that is not an object.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: unknown ending '{path.suffix}' (known: {', '.join(READERS)})")
    number = 0
    try:
        for number, row in reader(path):
            if not isinstance(row, dict):
                kind = type(row).__name__
                raise UserError(f"{place(path, number)}: a row must be an object, not {kind}")
            yield number, row
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    if number == 0:
        raise UserError(f"{path}: the file has no rows")


def _jsonl(path: Path) -> Rows:
    # Lines end at b"\n" alone: U+2028 and its like are ordinary characters within JSON.
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            text = _utf8(raw, path, number)
            if text.strip():
                yield number, _parse(text, path, number)


def _json(path: Path) -> Rows:
    text = _utf8(path.read_bytes(), path)
    rows = _parse(text, path) if text.strip() else []
    if isinstance(rows, dict):
        rows = rows.get("data")
    if not isinstance(rows, list):
        raise UserError(f'{path}: expected a list of rows or {{"data": [...]}}')
    return enumerate(rows, 1)


def _csv(path: Path) -> Rows:
    csv.field_size_limit(2**31 - 1)  # the default refuses a field of more than 128 KiB
    text = _utf8(path.read_bytes(), path)
    first = text.partition("\n")[0]
    # Excel writes semicolons where the comma is the decimal sign.
    delimiter = max(",;\t", key=lambda sign: (first.count(sign), sign == ","))
    lines = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    begin = 1
    header: list[str] = []
    try:
        for values in lines:
            if values and not header:
                header = [name.strip() for name in values]
                if len(set(header)) < len(header):
                    raise UserError(f"{path}, line {begin}: two columns have one name")
            elif any(value.strip() for value in values):
                if len(values) != len(header):
                    counts = f"{len(values)} fields where the header has {len(header)}"
                    raise UserError(f"{path}, line {begin}: {counts}")
                yield begin, dict(zip(header, values, strict=True))
            begin = lines.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {begin}: broken CSV ({error}); check the quotes") from error


def _parquet(path: Path) -> Rows:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(f"{path}: needs pyarrow: pip install -e '.[parquet]'") from None
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path}: not a whole Parquet file ({reason})") from error


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _utf8(raw: bytes, path: Path, line: int = 1) -> str:
    """Decode bytes whose first line has the number `line`."""
    if line == 1:
        raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        raise UserError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from error


def _parse(text: str, path: Path, line: int = 1) -> Any:
    """Parse JSON whose first line has the number `line`."""
    try:
        # Without its end a cut-off line would be reported as the next one.
        return json.loads(text.rstrip(" \t\r\n"))
    except json.JSONDecodeError as error:
        where = f"{path}, line {line + error.lineno - 1}"
        hint = ""
        if error.msg == "Extra data" and path.suffix.lower() == ".json":
            hint = "; is there a row on each line? then end the file's name in .jsonl"
        raise UserError(
            f"{where}: broken JSON ({error.msg}, column {error.colno}){hint}"
        ) from error
    except (ValueError, RecursionError) as error:  # thousands of digits, thousands of brackets
        raise UserError(f"{path}, line {line}: JSON that cannot be read ({error})") from error
