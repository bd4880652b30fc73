"""Data files -> (number, row): .jsonl, .json, .csv and .parquet.

Every fault is one line that names the file and the line. Numbers count from 1: lines of the file
for .jsonl and .csv (the line on which a row begins), rows for .json and .parquet.
"""

import codecs
import csv
import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedsdr.errors import UserError, one_line

Rows = Iterator[tuple[int, Any]]
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"


def place(path: Path, number: int) -> str:
    """Return how errors name a row of a file: `'FILE, line 7'`."""
    return f"{path}, {'line' if path.suffix.lower() in ('.jsonl', '.csv') else 'row'} {number}"


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the columns of each row; see `place` for what the number counts.

    .jsonl, .csv and .parquet files are streamed; a .json file is held whole. UserError for what is
    missing, no regular file, empty, not UTF-8 (a byte order mark is accepted), broken, or of an
    unknown ending, and for a row that is not an object.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: unknown ending '{path.suffix}' (known: {', '.join(READERS)})")
    number = 0
    try:
        _check_regular(path)
        for number, row in reader(path):
            if not isinstance(row, dict):
                kind = type(row).__name__
                raise UserError(f"{place(path, number)}: a row must be an object, not {kind}")
            yield number, row
    except OSError as error:
        reason = error.strerror or one_line(str(error))  # pyarrow's have no strerror
        raise UserError(f"{path}: cannot be read: {reason}") from error
    if number == 0:
        raise UserError(f"{path}: the file has no rows")


def arrow_rows(batch: Any, where: str) -> list[dict[str, Any]]:
    """Return the rows of an Arrow table or batch.

    A narrow float is the shortest decimal that stands for it (3.14), not its double
    (3.140000104904175). UserError for a column that Python cannot hold, as a date out of range.
    """
    columns: dict[str, list[Any]] = {}
    if len(set(batch.schema.names)) < len(batch.schema.names):
        raise UserError(f"{where}: two columns have one name")
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            values, convert = column.to_pylist(), _narrow_floats(column.type)
            columns[name] = [convert(value) for value in values] if convert else values
        except Exception as error:  # Arrow and pytz raise errors of many kinds
            reason = str(error).split("\n")[0]
            raise UserError(
                f"{where}: column '{name}' cannot be read ({reason}); fix or drop it"
            ) from error
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


class WrittenFloat(float):
    """A number of a JSON file; as text it is what the file has: 3.10, not 3.1."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text


def _check_regular(path: Path) -> None:
    """UserError for a pipe or a device, on which reading would wait, and for a Git LFS pointer."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise UserError(f"{path}: is a directory, not a file")
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: is a pipe or a device; write its rows into a file")
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(f"{path}: is a Git LFS pointer, not the data; run: git lfs pull")


def _jsonl(path: Path) -> Rows:
    # Lines end at b"\n" alone: U+2028 and its like are ordinary characters within JSON.
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            text = _utf8(raw.rstrip(b" \t\r\n"), path, number)
            if text:
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
    begin = 1
    header: list[str] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            # Excel writes semicolons where the comma is the decimal sign.
            delimiter = max(",;\t", key=lambda sign: (first.count(sign), sign == ","))
            file.seek(0)
            lines = csv.reader(file, strict=True, delimiter=delimiter)
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
    except UnicodeDecodeError:
        with path.open("rb") as raw:
            for number, line in enumerate(raw, 1):
                _utf8(line, path, number)  # raises, with the number of the line
        raise


def _parquet(path: Path) -> Rows:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(f"{path}: needs pyarrow: pip install 'fedsdr[parquet]'") from None
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for row in arrow_rows(batch, str(path)):
                    number += 1
                    yield number, row
    except (pa.ArrowException, ValueError) as error:
        raise UserError(f"{path}: not a whole Parquet file ({one_line(str(error))})") from error


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _narrow_floats(kind: Any) -> Callable[[Any], Any] | None:
    """Return what shortens the float16 and float32 values in a value of this Arrow type, if any."""
    import numpy as np
    from pyarrow import types

    if types.is_float16(kind) or types.is_float32(kind):
        narrow = np.float16 if types.is_float16(kind) else np.float32
        return lambda value: None if value is None else float(str(narrow(value)))
    if types.is_struct(kind):
        fields = {field.name: _narrow_floats(field.type) for field in kind}
        inner = {name: convert for name, convert in fields.items() if convert}
        if inner:
            return lambda row: row and row | {n: convert(row[n]) for n, convert in inner.items()}
    elif types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        item = _narrow_floats(kind.value_type)
        if item:
            return lambda values: values and [item(value) for value in values]
    return None


def _row(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("an object has two values for one key")
    return row


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
        # Without the line break at its end a cut-off line would be reported as the next one.
        return json.loads(text.rstrip(" \t\r\n"), parse_float=WrittenFloat, object_pairs_hook=_row)
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
