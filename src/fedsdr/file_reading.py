"""Read a file that this program wrote, after anything may have happened to it.

Every fault is a UserError of one line that names the file and ends with what can be done.
"""

import functools
import json
import os
import stat
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fedsdr.errors import UserError, one_line

RESTORE = "restore it from a copy"


def stands(path: Path) -> bool:
    """Return whether anything has this name; a broken link is damage, not absence."""
    return os.path.lexists(path)


def check_regular(path: Path, fix: str, missing: str = "") -> None:
    """UserError, which ends with `fix`, when there is no regular file that can be read.

    Opening a pipe waits for a writer, and a device may never end. `missing` replaces the text about
    a file that does not exist.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise UserError(f"{path}: {missing or f'missing; {fix}'}") from None
    except (OSError, ValueError) as error:  # ValueError: a path with NUL or a lone surrogate
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{str(path)[:200]!r}: cannot be read: {reason}") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise UserError(f"{path}: is {kind}; {fix}")


def read_text(path: Path, fix: str, missing: str = "", most: int = 2**31) -> str:
    """Return the UTF-8 text of a regular file, without a byte order mark.

    UserError as `check_regular`, and for more than `most` bytes.
    """
    check_regular(path, fix, missing)
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise UserError(f"{path}: is larger than {most // 1024:,} KiB; {fix}")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); {fix}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; {fix}") from None


def read_json(path: Path, schema: Any, fix: str) -> Any:
    """Return the JSON value of a file. UserError as `read_text` and `parse_json`."""
    return parse_json(read_text(path, fix), schema, str(path), fix)


def parse_json(text: str, schema: Any, where: str, fix: str) -> Any:
    """Return the JSON value of a text, unchanged, where it fits `schema`: a type as pydantic reads
    it, without coercion.

    UserError, which starts with `where` and ends with `fix`, for anything else: deep nesting,
    numbers that are not finite, integers of more than 64 bits, lone surrogates.
    """
    try:
        value = json.loads(text, parse_constant=_refused_number, parse_int=_integer)
        _adapter(schema).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        reason = ": ".join([*map(str, first["loc"]), first["msg"]])
        raise UserError(f"{where}: damaged ({one_line(reason)}); {fix}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error}); {fix}") from None
    return value


def _refused_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _integer(digits: str) -> int:
    if len(digits) > 19:
        raise ValueError("an integer of more than 64 bits")
    return int(digits)


@functools.cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def read_tensors(path: Path, fix: str) -> dict[str, Any]:
    """Return the tensors of a safetensors file. UserError, which ends with `fix`, if it is missing
    or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_regular(path, fix)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {fix}") from None
