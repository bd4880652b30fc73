"""rounds.jsonl: one line a round, read back and checked.

The checkpoint has the digest of all lines. It is a chain, each link the SHA-256 of the one before
and of one record without its seconds, so that a new line needs none of the earlier ones.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from fedsdr.errors import UserError
from fedsdr.federation.checkpoint import RecordsMark, records_mark
from fedsdr.file_reading import RESTORE, parse_json, read_text
from fedsdr.files import digest_without_seconds, disk_errors_named
from fedsdr.types import RoundRecord

RECORDS = "rounds.jsonl"


class Accepted(BaseModel, extra="allow", strict=True, allow_inf_nan=False):
    """What must be there of a client whose update was accepted; its metrics are numbers."""

    __pydantic_extra__: dict[str, float] = Field(init=False)
    id: str
    num_examples: int


class Refused(BaseModel, strict=True):
    """What must be there of a client whose update was refused or not used."""

    id: str
    reason: str


class Evaluation(BaseModel, extra="allow", strict=True, allow_inf_nan=False):
    """What must be there of the models measured after a round: losses by model."""

    __pydantic_extra__: dict[str, Any] = Field(init=False)
    of: str
    rows: int
    # client -> model -> nats per token
    losses: dict[str, dict[Literal["global", "client"], float]]


class Record(BaseModel, strict=True, allow_inf_nan=False):
    """What must be in a line of rounds.jsonl."""

    round: int
    clients: list[Accepted]
    refused: list[Refused]
    bytes_down: float
    bytes_up: float
    step_norm: float
    seconds: float
    update_cosine: float | None = None
    epsilon: float | None = None
    left_out: list[Refused] = []
    aggregation: dict[str, float] = {}
    evaluation: Evaluation | None = None


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Return the records up to the checkpoint; a run killed between its two writes left one more.

    UserError when rounds.jsonl is missing or damaged.
    """
    mark = records_mark(folder / "checkpoint")
    lines = record_lines(folder)
    records = parse_records(lines[: mark.lines] if mark else lines, folder / RECORDS)
    check_digest(folder, records, mark)
    return records


def append_record(folder: Path, record: RoundRecord) -> str:
    """Append a line to rounds.jsonl; return the digest of all lines.

    Earlier lines were checked when the run began, and are not read again.
    """
    path = folder / RECORDS
    line = json.dumps(dataclasses.asdict(record), allow_nan=False)
    (added,) = parse_records([line], path)
    mark = records_mark(folder / "checkpoint", check=False)
    before = mark.chain if mark else ""
    if mark and not before:  # the checkpoint of an older version
        before = chain_of(read_records(folder))
    with disk_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    return _link(before, added)


def chain_of(records: Iterable[Mapping[str, Any]]) -> str:
    """Return the digest of all records; '' without any."""
    return functools.reduce(_link, records, "")


def _link(before: str, record: Mapping[str, Any]) -> str:
    return sha256((before + digest_without_seconds(record)).encode()).hexdigest()


def best_round(records: Iterable[Mapping[str, Any]]) -> tuple[int, float] | None:
    """Return the first round whose own models had the lowest mean loss between rounds, and that
    loss; None where none was measured."""
    measured = [
        (record["round"], record["evaluation"]["mean"]["client"]["loss"])
        for record in records
        if record.get("evaluation")
    ]
    return min(measured, key=lambda found: found[1], default=None)


def record_lines(folder: Path) -> list[str]:
    """Return the lines of rounds.jsonl as text."""
    return [line for line in read_text(folder / RECORDS, RESTORE).split("\n") if line]


def parse_records(lines: Sequence[str], path: Path) -> list[dict[str, Any]]:
    """Return the records in these lines of the file `path`."""
    return [
        parse_json(line, Record, f"{path}, line {number}", RESTORE)
        for number, line in enumerate(lines, start=1)
    ]


def check_digest(
    folder: Path, records: Sequence[Mapping[str, Any]], mark: RecordsMark | None
) -> None:
    """UserError when the records are not those that the newest checkpoint marks."""
    if mark is None or not (mark.chain or mark.whole):
        return
    digest = chain_of(records) if mark.chain else digest_without_seconds(records)
    if digest != (mark.chain or mark.whole):
        raise UserError(
            f"{folder / RECORDS}: damaged (it is not the file of the checkpoint); restore it from "
            "a copy, or choose another --out"
        )
