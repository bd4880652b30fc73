"""results.json on disk: written with a checksum; what must be in it, whichever version wrote it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from fedsdr.errors import UserError
from fedsdr.file_reading import read_json, stands
from fedsdr.files import digest_without_seconds, write_atomically
from fedsdr.saved_config import read_saved

RESULTS = "results.json"


class _Part(BaseModel, extra="allow", strict=True, allow_inf_nan=False):
    """A part of results.json, with what its readers need."""


_Interval = Annotated[list[float], Field(min_length=2, max_length=2)]
_Sums = Annotated[list[float], Field(min_length=3, max_length=3)]


class _Value(_Part):
    value: float
    interval: _Interval


class _Sign(_Value):
    rows: int


class _Mean(_Part):
    loss: float
    score: float
    score_ci: _Interval
    audit: dict[str, _Sign] = {}


class _Model(_Mean):
    tokens: float


class _Client(_Part):
    num_test: int
    metric: str
    models: dict[Literal["base", "global", "client"], _Model] = Field(min_length=3)


class _Cost(_Part):
    tokens: dict[str, float]
    seconds: dict[str, float]
    bytes_down: float
    bytes_up: float


class _Audit(_Part):
    words: int
    gold_words: int
    prose_words: int
    numbers: int
    names: int
    wrong: bool | None
    grams: int
    repeated: int
    fillers: int
    template: bool


class _Row(_Part):
    score: float
    loss_sum: float
    tokens: float
    finished: bool = True
    audit: _Audit | None = None


class _Example(_Part):
    id: str
    base: _Row
    global_: _Row = Field(alias="global")
    client: _Row


class _Kept(_Part):
    drift: _Value
    rise: _Value


class _KeptRows(_Part):
    global_: list[_Sums] = Field(alias="global")
    clients: dict[str, list[_Sums]]


class _Retention(_Part):
    prompts: int
    tokens: int
    models: dict[Literal["global", "client"], _Kept] = Field(min_length=2)
    clients: dict[str, _Kept]
    rows: _KeptRows


class _Place(_Part):
    loss: float
    loss_ci: _Interval
    score: float
    score_ci: _Interval


class _Means(_Part):
    global_: _Place = Field(alias="global")
    client: dict[str, _Place]


class _Transfer(_Part):
    matrix: dict[str, dict[str, _Place]]
    means: _Means


class _NoPart(_Part):
    clients: dict[str, _Client]


class Results(_Part):
    """What must be in results.json; without test rows it has neither means nor examples."""

    method: str
    algorithm: str
    seed: int
    rounds: int
    clients: dict[str, _Client]
    cost: _Cost
    mean: dict[str, _Mean] = {}
    weighted_mean: dict[str, _Mean] = {}
    examples: dict[str, list[_Example]] = {}
    retention: _Retention | None = None
    transfer: _Transfer | None = None
    took_no_part: _NoPart | None = None

    @model_validator(mode="after")
    def _whole(self) -> "Results":
        parts = (self.mean, self.weighted_mean)
        if self.clients and not all(part.keys() == {"base", "global", "client"} for part in parts):
            raise ValueError("a mean is missing")
        return self


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Write results.json of a run folder, with a checksum over it and the name of the run."""
    written = {**results, "check": _check(folder, json.loads(json.dumps(results)))}
    write_atomically(folder / RESULTS, json.dumps(written, indent=2) + "\n")


def read_results(folder: Path, fix: str) -> dict[str, Any]:
    """Return what `write_results` was given.

    UserError, which ends with `fix`, when it is missing, damaged or of another run.
    """
    path = folder / RESULTS
    results: dict[str, Any] = read_json(path, Results, fix)
    check = results.pop("check", None)  # older versions wrote none
    if check is not None and check != _check(folder, results):
        raise UserError(
            f"{path}: damaged, or not of the run of {folder / 'config.toml'}; restore both, or "
            f"measure again: fedsdr evaluate {folder}"
        )
    return results


def measured_results(folder: Path, rounds: int, asked: int) -> dict[str, Any] | None:
    """Return results.json, None where a run of so many rounds is not measured yet.

    A run with rows of its own is measured after its last round, so its results are then missing:
    UserError, as for a damaged file. A server has no rows and measures nothing.
    """
    path, again = folder / RESULTS, f"measure again: fedsdr evaluate {folder}"
    if stands(path):
        return read_results(folder, again)
    if rounds >= asked and stands(folder / "data.json"):
        raise UserError(f"{path}: missing; {again}")
    return None


def _check(folder: Path, results: Mapping[str, Any]) -> str:
    config = folder / "config.toml"
    run = read_saved(config)[1] if stands(config) else ""
    return digest_without_seconds({"run": run, "results": results})
