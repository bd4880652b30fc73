"""Tables of what results.json measures of each model; an arrow shows which direction is better."""

from collections.abc import Mapping
from typing import Any

from fedsdr.evaluation.answer_audit import SIGNS
from fedsdr.evaluation.results import MODELS, Table, interval_text, table_of

RETENTION = {"drift": "drift, KL from the base", "rise": "rise of loss"}  # key -> name in tables


def tables_of(results: Mapping[str, Any]) -> list[Table]:
    """Return the tables of results.json, without those that its version did not measure."""
    tables = [
        ("Score [95 % interval over test rows] and loss (nats per token)", table_of(results)),
        ("Answer audit, mean over clients [95 % interval over test rows]", _audit_rows(results)),
        (_retention_title(results), _retention_rows(results)),
        ("Transfer, mean over clients [95 % interval over test rows]", _transfer_rows(results)),
        ("Loss of each model (row) on the test rows of each client ↓", _matrix_rows(results)),
    ]
    return [(title, rows) for title, rows in tables if len(rows) > 1]


def _audit_rows(results: Mapping[str, Any]) -> list[list[str]]:
    rows = [["sign", "better", *MODELS, "answers"]]
    for name, sign in SIGNS.items():
        found = [results.get("mean", {}).get(m, {}).get("audit", {}).get(name) for m in MODELS]
        if all(found):
            rows.append([sign.title, sign.better, *map(_cell, found), str(found[0]["rows"])])
    return rows


def _retention_title(results: Mapping[str, Any]) -> str:
    counts = results.get("retention") or {"prompts": 0, "tokens": 0}
    return (
        f"Retention on the base's answers to {counts['prompts']} neutral prompts "
        f"({counts['tokens']:,} tokens), nats per token [95 % interval over prompts]"
    )


def _retention_rows(results: Mapping[str, Any]) -> list[list[str]]:
    rows = [["model", *(f"{title} ↓" for title in RETENTION.values())]]
    if retention := results.get("retention"):
        models = {
            "global": retention["models"]["global"],
            "client (mean)": retention["models"]["client"],
            **{f"client {name}": entry for name, entry in retention["clients"].items()},
        }
        rows += [[name, *(_cell(e[key]) for key in RETENTION)] for name, e in models.items()]
    return rows


def _transfer_rows(results: Mapping[str, Any]) -> list[list[str]]:
    rows = [["model", "on the rows of", "loss ↓", "score ↑"]]
    if transfer := results.get("transfer"):
        means = {("global", "all clients"): transfer["means"]["global"]}
        means |= {("client", where): e for where, e in transfer["means"]["client"].items()}
        for place, entry in means.items():
            values = [{"value": entry[w], "interval": entry[f"{w}_ci"]} for w in ("loss", "score")]
            rows.append([*place, *map(_cell, values)])
    return rows


def _matrix_rows(results: Mapping[str, Any]) -> list[list[str]]:
    matrix = (results.get("transfer") or {"matrix": {}})["matrix"]
    clients = list(next(iter(matrix.values()), ()))
    return [["model", *clients]] + [
        [model, *(f"{row[client]['loss']:.3f}" for client in clients)]
        for model, row in matrix.items()
    ]


def _cell(entry: Mapping[str, Any]) -> str:
    return f"{entry['value']:.3f}{interval_text(entry['interval'])}"
