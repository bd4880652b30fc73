"""The cache of rewrites, keyed by all that they depend on.

FOLDER/rewrites/<fingerprint>.json    the teacher: model, weights, template, engine, decoding
FOLDER/rewrites/<fingerprint>.jsonl   its rewrites, one line each; append-only
"""

import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from fedsdr.file_reading import check_regular, stands
from fedsdr.files import disk_errors_named, made_once, write_atomically
from fedsdr.types import Decoding, Generation


@dataclasses.dataclass(frozen=True)
class Teacher:
    """What a rewrite depends on beside its example.

    This includes the engine, because one seed samples other text in another engine.
    """

    model: str  # as the user names it
    weights: str  # revision or hash of the weights
    template: str  # fingerprint of the chat template
    engine: str  # name and version
    decoding: Decoding

    @property
    def fingerprint(self) -> str:
        """The first 16 hex digits of SHA-256 over all fields."""
        return _digest(json.dumps(dataclasses.asdict(self), sort_keys=True))[:16]


def cache_key(request: str, seed: int) -> str:
    """Return the key of one rewrite: SHA-256 of the prompt as the teacher reads it and the seed."""
    return _digest(f"{seed}\n{request}")


class GenerationFile:
    """Generations by key, in memory and in an append-only file of JSON lines.

    A row is appended by one `write` to a file opened with O_APPEND, so that an interrupted process
    keeps every finished row and several can append at once. The partial line that a crash may leave
    is terminated by the next row and ignored on load. A process sees the rows of another when it
    opens the file anew. Of two rows with one key the first counts.
    """

    def __init__(self, path: Path) -> None:
        """Load the file, if there is one. UserError when the disk refuses."""
        self.path = path
        with disk_errors_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            content = b""
            if stands(path):
                check_regular(path, "remove it, or choose another teacher.cache")
                content = path.read_bytes()
        self._partial = not content.endswith(b"\n") and content != b""
        self._rows: dict[str, Generation] = {}
        for line in content.splitlines():
            if row := _row(line):
                self._rows.setdefault(row.id, row)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Generation]:
        """Yield the generations in the order of the file; each `id` is its key."""
        return iter(self._rows.values())

    def get(self, key: str) -> Generation | None:
        """Return the generation under a key, whose `id` is the key, or None."""
        return self._rows.get(key)

    def put(self, key: str, generation: Generation) -> None:
        """Store a generation, in memory and on disk. UserError when the disk refuses."""
        row = dataclasses.replace(generation, id=key)
        fields = dataclasses.asdict(row)
        fields["check"] = _digest(json.dumps(fields))[:16]
        line = ("\n" if self._partial else "") + json.dumps(fields) + "\n"
        with disk_errors_named(self.path):
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                if os.write(file, line.encode()) < len(line):
                    self._partial = True
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(file)
        self._partial = False
        self._rows.setdefault(key, row)


class RewriteCache(GenerationFile):
    """The rewrites of one teacher."""

    def __init__(self, folder: str | Path, teacher: Teacher) -> None:
        """Load the teacher's rewrites from `folder`, created if missing. UserError when the disk
        refuses."""
        self.teacher = teacher
        path = Path(folder) / "rewrites" / f"{teacher.fingerprint}.jsonl"
        about = json.dumps(dataclasses.asdict(teacher), indent=2, sort_keys=True) + "\n"
        made_once(path.with_suffix(".json"), lambda path: write_atomically(path, about))
        super().__init__(path)


def _row(line: bytes) -> Generation | None:
    """Return the generation of a line, or None for a line that is partial or damaged."""
    try:
        fields = json.loads(line)
        check = fields.pop("check", None)  # older versions wrote none
        if check is not None and check != _digest(json.dumps(fields))[:16]:
            return None
        row = Generation(**fields)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    types = {"id": str, "text": str, "finished": bool, "prompt_tokens": int, "new_tokens": int}
    return row if all(isinstance(getattr(row, k), kind) for k, kind in types.items()) else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
