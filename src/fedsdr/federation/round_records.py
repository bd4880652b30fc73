"""rounds.jsonl: one line a round, read back and checked."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from fedsdr.errors import UserError
from fedsdr.federation.checkpoint import records_digest
from fedsdr.file_reading import RESTORE, parse_json, read_text
from fedsdr.files import digest_without_seconds

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
    """Return the lines of rounds.jsonl. UserError when it is missing or damaged."""
    records = parse_records(record_lines(folder), folder / RECORDS)
    check_digest(folder, records)
    return records


def record_lines(folder: Path) -> list[str]:
    """Return the lines of rounds.jsonl as text."""
    return [line for line in read_text(folder / RECORDS, RESTORE).split("\n") if line]


def parse_records(lines: Sequence[str], path: Path) -> list[dict[str, Any]]:
    """Return the records in these lines of the file `path`."""
    return [
        parse_json(line, Record, f"{path}, line {number}", RESTORE)
        for number, line in enumerate(lines, start=1)
    ]


def check_digest(folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """UserError when the records are not those of the newest checkpoint."""
    digest = records_digest(folder / "checkpoint")
    if digest and digest != digest_without_seconds(records):
        raise UserError(
            f"{folder / RECORDS}: damaged (it is not the file of the checkpoint); restore it from "
            "a copy, or choose another --out"
        )
