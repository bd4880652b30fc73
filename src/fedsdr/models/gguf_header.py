"""Read the header of a .gguf file with every count bounded, before a library reads it.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from fedsdr.errors import UserError
from fedsdr.extras import import_extra
from fedsdr.models.model_files import StoredWeights, check_counts, check_no_pointer

MAX_KEYS, MAX_TENSORS, MAX_DIMENSIONS = 10_000, 200_000, 8
MAX_TEXT, MAX_ITEMS = 16 << 20, 4_000_000  # bytes of a string; elements of an array
ALIGNMENT = 32
TEXT, ARRAY = 8, 9
# Value types 0 to 12 without TEXT and ARRAY, as struct formats.
NUMBERS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip


def stored_in_gguf(path: Path) -> StoredWeights:
    """Return how much a .gguf file holds. UserError when it is damaged or truncated."""
    check_no_pointer(path)
    try:
        with path.open("rb") as file:
            return _read(path, file)
    except (ValueError, OSError) as error:
        raise UserError(
            f"model.name: {path}: not a complete .gguf file ({error}); download it again"
        ) from None


def _read(path: Path, file: BinaryIO) -> StoredWeights:
    def number(kind: str) -> Any:
        size = struct.calcsize(kind)
        return struct.unpack(f"<{kind}", _take(file, size))[0]

    def count(kind: str, most: int, what: str) -> int:
        found: int = number(kind)
        if found > most:
            raise ValueError(f"{found:,} {what}, more than {most:,}")
        return found

    def text() -> str:
        return _take(file, count("Q", MAX_TEXT, "bytes of a string")).decode("utf-8", "replace")

    if _take(file, 4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    if (version := number("I")) not in (2, 3):
        raise ValueError(f"version {version}; 2 and 3 are supported")
    tensors, keys = count("Q", MAX_TENSORS, "tensors"), count("Q", MAX_KEYS, "keys")
    values: dict[str, Any] = {}
    for _ in range(keys):
        name = text()
        values[name] = _value(number("I"), number, count, text)
    check_counts(path, values)
    sizes: list[tuple[str, int, int, int]] = []
    for _ in range(tensors):
        name = text()
        shape = [number("Q") for _ in range(count("I", MAX_DIMENSIONS, "dimensions"))]
        sizes.append((name, math.prod(shape), number("I"), number("Q")))
    alignment = values.get("general.alignment", ALIGNMENT)
    begin = math.ceil(file.tell() / alignment) * alignment
    for name, elements, kind, offset in sizes:
        end, size = begin + offset + _bytes_of(elements, kind), path.stat().st_size
        if end > size:
            raise ValueError(f"{name} ends at byte {end:,} of {size:,}")
    return StoredWeights(len(sizes), sum(elements for _, elements, _, _ in sizes))


def _value(
    kind: int,
    number: Callable[[str], Any],
    count: Callable[[str, int, str], int],
    text: Callable[[], str],
) -> Any:
    """Return a number or a text; read over an array."""
    if kind == TEXT:
        return text()
    if kind == ARRAY:
        inner, items = number("I"), count("Q", MAX_ITEMS, "elements of an array")
        if inner == ARRAY:
            raise ValueError("an array of arrays")
        for _ in range(items):
            _value(inner, number, count, text)
        return None
    if kind not in NUMBERS:
        raise ValueError(f"a value of type {kind}")
    return number(NUMBERS[kind])


def _take(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise ValueError("it ends within the header")
    return data


def _bytes_of(elements: int, kind: int) -> int:
    """Return the bytes of a tensor of a ggml type."""
    gguf = import_extra("gguf", "gguf", "model.name")
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    return math.ceil(elements / block) * size
