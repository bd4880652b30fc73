"""Read a run's suites.json, and format results as tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, TypeAdapter

from fedsdr.errors import UserError


class Answers(BaseModel, extra="allow"):
    """The scores of one model: metric -> one score per question."""

    scores: dict[str, list[float]] = Field(min_length=1)


class SavedSuite(BaseModel, extra="allow"):
    """What must be there of each suite in suites.json."""

    ids: list[str]
    num_questions: int
    shots: int
    how: str
    models: dict[str, Answers]
    clients: dict[str, Answers]


def saved_suites(run: Path) -> dict[str, Any]:
    """Return the content of RUN/suites.json, {} if there is none. UserError for a broken one."""
    path = run / "suites.json"
    if not path.exists():
        return {}
    try:
        found = TypeAdapter(dict[str, SavedSuite]).validate_json(path.read_bytes())
        for name, suite in found.items():
            for entry in (*suite.models.values(), *suite.clients.values()):
                if any(len(values) != len(suite.ids) for values in entry.scores.values()):
                    raise ValueError(f"{name}: not one score per question")
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: broken ({reason}); remove it") from error
    return {name: suite.model_dump() for name, suite in found.items()}


def tables_of(results: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """Return title -> table of texts, its first row the header.

    The clients' own models have a separate table, since each has seen its client's data.
    """
    tables = {}
    for title, kind in (
        ("public suites (± standard error over questions)", "models"),
        ("the clients' own models on the same questions", "clients"),
    ):
        models = list(next(iter(results.values()))[kind])
        rows = [
            [name, str(suite["shots"]), _questions(suite), metric]
            + [_score(suite[kind][model]["metrics"][metric]) for model in models]
            + [f"{sum(entry['seconds'] for entry in suite[kind].values()):,.0f}"]
            for name, suite in results.items()
            for metric in suite["models"]["base"]["metrics"]
        ]
        if models:
            tables[title] = [["suite", "shots", "questions", "metric", *models, "seconds"], *rows]
    return tables


def _questions(suite: Mapping[str, Any]) -> str:
    cut = f" ({suite['cut_prompts']} prompts cut)" if suite["cut_prompts"] else ""
    return f"{suite['num_questions']}{cut}"


def _score(found: Mapping[str, float]) -> str:
    return f"{found['mean']:.3f}" + (f" ± {found['stderr']:.3f}" if "stderr" in found else "")
