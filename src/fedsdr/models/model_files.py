"""Check the files of a model folder before anything is loaded from them."""

import functools
import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from fedsdr.errors import UserError, one_line
from fedsdr.file_reading import read_text
from fedsdr.files import sha256_of

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
MAX_LAYERS = 1_000
MAX_JSON = 64 << 20  # bytes
AGAIN = "download the model again"
LFS_POINTER = b"version https://git-lfs"
# Packed 2-bit weights: 16 in each element of 32 bits.
PACKED = 16


class StoredWeights(NamedTuple):
    """How many tensors the files of a model hold, and how many weights at most."""

    tensors: int
    elements: int


def check_folder(folder: Path, *, weights: bool = True) -> None:
    """UserError, naming the file, for a folder that transformers cannot load or should not.

    With `weights=False` the folder needs only its config.json.
    """
    if not folder.is_dir():
        raise UserError(f"model.name: {folder}: no such folder")
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"model.name: {folder}: not a model folder (no config.json)")
    if (folder / ADAPTER).exists():
        raise UserError(
            f"model.name: {folder / ADAPTER}: an adapter in a model folder, which transformers "
            "would load with its own base; remove it, or name a folder without it"
        )
    for path in sorted(folder.iterdir()):
        if path.suffix in {".json", ".jinja", ".model", ".safetensors"} and path.is_file():
            check_no_pointer(path)
    check_counts(config, _object_in(config))
    if weights:
        for path in weight_files(folder):
            shapes_in(path)


def weight_files(folder: Path) -> list[Path]:
    """Return the *.safetensors files of a model. UserError when one of them is missing."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"model.name: {folder}: no *.safetensors weights (other formats are not supported)"
        )
    listed = _object_in(index).get("weight_map")
    names = set(listed.values()) if isinstance(listed, dict) else set()
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise UserError(
            f"model.name: {index}: must have a 'weight_map' from tensors to files of this folder; "
            "download it again"
        )
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise UserError(
            f"model.name: {folder / missing[0]}: missing, {len(missing)} of the {len(names)} files "
            f"of {INDEX}; download them"
        )
    return [folder / name for name in sorted(names)]


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Return tensor -> shape of a .safetensors file. UserError when it is not complete."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"model.name: {path}: not a complete .safetensors file ({one_line(str(error))}); "
            "download it again"
        ) from None


def stored_weights(folder: Path) -> StoredWeights:
    """Return how much the files of a folder hold."""
    shapes = [shape for path in weight_files(folder) for shape in shapes_in(path).values()]
    config = _object_in(folder / "config.json")
    elements = sum(map(math.prod, shapes))
    return StoredWeights(
        len(shapes), elements * (PACKED if config.get("quantization_config") else 1)
    )


def _object_in(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file, in which "Infinity" is allowed, as transformers does."""
    try:
        found = json.loads(read_text(path, AGAIN, most=MAX_JSON))
    except (ValueError, RecursionError) as error:
        raise UserError(f"model.name: {path}: not valid JSON ({error}); {AGAIN}") from None
    if not isinstance(found, dict):
        raise UserError(f"model.name: {path}: must hold a JSON object; {AGAIN}")
    return found


def check_no_pointer(path: Path) -> None:
    """UserError for a file that Git LFS has not downloaded."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(
                f"model.name: {path}: a Git LFS pointer instead of the file; run: git lfs pull"
            )


def check_counts(path: Path, config: dict[str, Any]) -> None:
    """UserError for a number of layers for which even the configuration would take the memory."""
    for key, value in _numbers(config):
        if re.search(r"layers?$|blocks?$|block_count$|depth$", key) and value > MAX_LAYERS:
            raise UserError(
                f"model.name: {path}: {key} = {one_line(str(value), 20)}, at most {MAX_LAYERS:,} "
                "layers are supported; correct it or download the model again"
            )


def _numbers(config: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield every key with a number, of nested objects too."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, int | float):
            yield key, value


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, computed once while its time and size stay the same."""
    found = path.stat()
    return _hash(path, found.st_mtime_ns, found.st_size)


@functools.lru_cache(maxsize=64)
def _hash(path: Path, changed: int, size: int) -> str:
    return sha256_of(path)


def hash_folder(folder: Path) -> str:
    """Return a hash of the configuration, the tokenizer and all weights."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        digest.update(f"{path.name} {hash_file(path)} ".encode())
    return digest.hexdigest()
