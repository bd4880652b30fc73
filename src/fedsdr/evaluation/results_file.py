"""What must be in results.json, whichever version wrote it."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator


class _Part(BaseModel, extra="allow", strict=True, allow_inf_nan=False):
    """A part of results.json, with what its readers need."""


class _Mean(_Part):
    loss: float
    score: float
    score_ci: Annotated[list[float], Field(min_length=2, max_length=2)]


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


class _Row(_Part):
    score: float
    loss_sum: float
    tokens: float


class _Example(_Part):
    id: str
    base: _Row
    global_: _Row = Field(alias="global")
    client: _Row


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

    @model_validator(mode="after")
    def _whole(self) -> "Results":
        parts = (self.mean, self.weighted_mean)
        if self.clients and not all(part.keys() == {"base", "global", "client"} for part in parts):
            raise ValueError("a mean is missing")
        return self
