"""A run's suites.json, and its tables: base and global model in one, clients in another."""

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
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: broken ({error}); remove it") from error
    return found


def tables_of(results: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """Return tables as text by title, the first row of each its header.

    After a mean stands its standard error. There is no table of clients where the run has no models
    of their own.
    """
    body = [
        [name, _how(suite), metric, str(suite["num_questions"])]
        + [_text(suite["models"].get(model), metric) for model in ("base", "global")]
        + [_seconds(suite)]
        for name, suite in results.items()
        for metric in suite["models"]["base"]["metrics"]
    ]
    header = ["suite", "how", "metric", "questions", "base", "global", "seconds"]
    tables = {"public suites (± standard error over questions)": [header, *body]}
    clients = sorted({client for suite in results.values() for client in suite["clients"]})
    if clients:
        columns = [
            (f"{name} {metric}", suite, metric)
            for name, suite in results.items()
            for metric in suite["models"]["base"]["metrics"]
        ]
        tables["the clients' own models on the same questions"] = [
            ["client", *(title for title, _, _ in columns)],
            *(
                [client, *(_text(suite["clients"].get(client), m) for _, suite, m in columns)]
                for client in clients
            ),
        ]
    return tables


def _how(suite: Mapping[str, Any]) -> str:
    fewest = suite["fewest_shots"]
    fewer = f" (long questions {fewest})" if fewest < suite["shots"] else ""
    return f"{suite['shots']}-shot{fewer}, {suite['how']}"


def _text(entry: Mapping[str, Any] | None, metric: str) -> str:
    if entry is None or metric not in entry["metrics"]:
        return "-"
    found = entry["metrics"][metric]
    return f"{found['mean']:.3f}" + (f" ± {found['stderr']:.3f}" if "stderr" in found else "")


def _seconds(suite: Mapping[str, Any]) -> str:
    entries = [*suite["models"].values(), *suite["clients"].values()]
    return f"{sum(entry['seconds'] for entry in entries):,.0f}"
