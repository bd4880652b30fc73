"""diagnose.json as tables, each with one line that says what it means and what is better."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedsdr.evaluation.results import to_markdown

OVERALL = ("all made", "all used")  # groups of rewrites beside those of each client


class Table(NamedTuple):
    """A table as text; the first row is the header."""

    title: str
    meaning: str
    rows: Sequence[Sequence[str]]


def tables_of(found: Mapping[str, Any]) -> list[Table]:
    """Return the tables of the parts in diagnose.json.

    A cell is a value, its 95 % interval in square brackets and, in round brackets, the number of
    rows behind it, unless a column gives that number.
    """
    tables: list[Table] = []
    for name, build in _TABLES.items():
        part = found.get(name, {})
        if reason := part.get("not measured"):
            meaning = "This part does not apply to the run."
            tables.append(grid(name, meaning, {"not measured": {"": reason}}))
        elif part:
            tables += build(part)
    return tables


def json_numbers(value: Any) -> Any:
    """Return `value` with None in place of every number that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: json_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_numbers(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def markdown_of(title: str, tables: Sequence[Table], notes: Sequence[str] = ()) -> str:
    """Return the tables and the notes as one Markdown page."""
    parts = [f"## {name}\n\n{meaning}\n\n{to_markdown(rows)}" for name, meaning, rows in tables]
    return "\n\n".join([f"# {title}", *parts, *(f"- {note}" for note in notes)]) + "\n"


def grid(title: str, meaning: str, rows: Mapping[str, Mapping[str, str]]) -> Table:
    """Return the table of row name -> column name -> text; missing cells are empty."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    body = [[name, *(row.get(column, "") for column in columns)] for name, row in rows.items()]
    return Table(title, meaning, [["", *columns], *body])


def digits(value: float | None, count: int = 3) -> str:
    """Return a number with `count` significant digits; '' for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.{count}g}"


def with_interval(entry: Mapping[str, Any]) -> str:
    """Return value and interval of an entry, as in `0.412 [0.40, 0.43]`."""
    ends = ", ".join(digits(end, 2) for end in entry.get("interval") or ())
    return digits(entry["value"]) + (f" [{ends}]" if ends else "")


def _cell(entry: Mapping[str, Any], interval: bool = True) -> str:
    if entry.get("value") is None:
        return ""
    value = with_interval(entry) if interval else digits(entry["value"])
    return f"{value} ({entry['rows']})"


def _text(part: Mapping[str, Any]) -> list[Table]:
    rows = {}
    for measure, entry in part.items():
        tokens = entry.get("tokens a client")
        name = f"{measure} ({tokens} a client)" if tokens else measure
        kinds = ("raw", "rewritten", "change")
        rows[name] = {kind: _cell(entry[kind]["mean"]) for kind in kinds if kind in entry}
    meaning = (
        "Similarity of the clients' answers, mean over pairs of clients. A lower divergence and a "
        "higher cosine after rewriting mean better aligned clients; a fall that is absent at equal "
        "tokens is length. A probe near chance cannot tell the clients apart: one semantic space."
    )
    return [grid("Alignment of text", meaning, rows)]


def _rewrites(part: Mapping[str, Any]) -> list[Table]:
    rows: dict[str, dict[str, str]] = {}
    for column, signs in part.items():
        for sign, entry in signs.items():
            rows.setdefault(sign, {})[column] = _cell(entry, interval=column in OVERALL)
    meaning = (
        "What rewriting keeps and loses. Better: a length ratio near 1, 'kept' and entailment near "
        "1, fillers and template phrases no more frequent than in the raw answer, the rest near 0."
    )
    known = {sign: row for sign, row in rows.items() if any(row.values())}
    return [grid("Raw answers against rewrites", meaning, known)]


def _optimization(part: Mapping[str, Any]) -> list[Table]:
    def table(title: str, meaning: str, key: str, columns: Mapping[str, str]) -> Table:
        rows = {
            name: {column: digits(entry[of]) for column, of in columns.items()}
            | {"rows": str(entry["rows"])}
            for name, entry in part[key].items()
        }
        return grid(title, meaning, rows)

    return [
        table(
            "Gradient cosine of R",
            "Higher between clients: what one client learns suits the others. The cosine within a "
            "client, on half as many rows, is about the most that so few rows allow.",
            "gradient cosine",
            {"between clients": "mean", "within a client": "within"},
        ),
        table(
            "Loss transfer between clients",
            "Change of one client's loss after training on another; below 0, training helps.",
            "loss transfer",
            {"change, nats per token": "mean", "change, %": "percent"},
        ),
    ]


def _losses(
    title: str, meaning: str, of: str, losses: Mapping[str, Any], counts: Mapping[str, int]
) -> Table:
    rows = {
        client: {f"{of} rows": str(counts[client])} | {m: digits(x) for m, x in found.items()}
        for client, found in losses.items()
    }
    total = {f"{of} rows": str(sum(counts[client] for client in losses))}
    for model in dict.fromkeys(model for found in losses.values() for model in found):
        values = [found.get(model) for found in losses.values()]
        if None not in values:
            total[model] = digits(statistics.fmean(values))
    return grid(title, f"Nats per token; lower is better. {meaning}", rows | {"mean": total})


def _serving(part: Mapping[str, Any]) -> list[Table]:
    meaning = (
        "R alone is the global model, R+S a client's own. R is trained beside S: where R alone is "
        "much worse than R+S, the global model depends on an S that it is served without."
    )
    return [_losses("Loss by branch", meaning, part["of"], part["losses"], part["rows"])]


def _aggregation(part: Mapping[str, Any]) -> list[Table]:
    size, sizes = part["norm of the mean"], part["mean of the norms"]
    numbers = {
        "error of averaging A and B instead of BA": part["product error"],
        "the same, of the worst module": part["product error, largest of a module"],
        "cosine between updates, mean over pairs": part["cosine of updates"]["mean"],
        "norm of the mean update / mean norm of the updates": size and sizes and size / sizes,
    }
    title = f"Averaging, in one more round on {part['rows']} training rows"
    meaning = "Error: 0 is exact. A cosine near 0 and a ratio far below 1: the updates cancel."
    after = "A new global model above 'own' is what averaging costs the client."
    losses, counts = part["losses"], part["loss rows"]
    return [
        grid(title, meaning, {name: {"value": digits(value)} for name, value in numbers.items()}),
        _losses("Loss before and after averaging", after, part["of"], losses, counts),
    ]


_TABLES = {
    "text": _text,
    "rewrites": _rewrites,
    "optimization": _optimization,
    "serving": _serving,
    "aggregation": _aggregation,
}
