"""A run's suites.json, and the tables that are printed of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsdr.errors import UserError

NEEDED = {"ids", "num_questions", "shots", "how", "models", "clients"}  # of each suite


def saved_suites(run: Path) -> dict[str, Any]:
    """Return what RUN/suites.json holds, {} where there is none. UserError when it is broken."""
    path = run / "suites.json"
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
        for suite in found.values():
            if lacking := NEEDED - suite.keys():
                raise ValueError(f"no {min(lacking)}")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: broken ({error}); remove it") from error
    return found


def tables_of(results: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """Return tables as text by title, the first row of each its header.

    The clients' own models stand in a table of their own: each has seen its client's data.
    """
    tables = {}
    for title, kind in (
        ("public suites (± standard error over questions)", "models"),
        ("the clients' own models on the same questions", "clients"),
    ):
        models = list(dict.fromkeys(model for suite in results.values() for model in suite[kind]))
        rows = [
            [name, str(suite["shots"]), _questions(suite), metric]
            + [_score(suite[kind].get(model), metric) for model in models]
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


def _score(entry: Mapping[str, Any] | None, metric: str) -> str:
    if entry is None or metric not in entry["metrics"]:
        return "-"
    found = entry["metrics"][metric]
    return f"{found['mean']:.3f}" + (f" ± {found['stderr']:.3f}" if "stderr" in found else "")
