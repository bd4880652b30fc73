"""diagnose.json as tables, each with one line that says what it means and what is better."""

import math
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
        if "not measured" in part:
            rows = [["", ""], ["not measured", part["not measured"]]]
            tables.append(Table(name, "This part does not apply to the run.", rows))
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


def digits(value: float | None, count: int = 3) -> str:
    """Return a number with `count` significant digits; '' for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.{count}g}"


def with_interval(entry: Mapping[str, Any]) -> str:
    """Return value and interval of an entry, as in `0.412 [0.40, 0.43]`."""
    ends = ", ".join(digits(end, 2) for end in entry.get("interval") or ())
    return digits(entry["value"]) + (f" [{ends}]" if ends else "")


def _cell(entry: Mapping[str, Any] | None, interval: bool = True) -> str:
    if not entry or entry.get("value") is None:
        return ""
    value = with_interval(entry) if interval else digits(entry["value"])
    return f"{value} ({entry['rows']})"


def _text(part: Mapping[str, Any]) -> list[Table]:
    kinds = ("raw", "rewritten", "change")
    rows = [["mean over pairs of clients", *kinds]]
    for measure, entry in part.items():
        tokens = entry.get("tokens a client")
        name = f"{measure} ({tokens} a client)" if tokens else measure
        rows.append([name, *(_cell(entry.get(kind, {}).get("mean")) for kind in kinds)])
    meaning = (
        "Similarity of the clients' answers. A lower divergence and a higher cosine after "
        "rewriting mean better aligned clients; a fall that is absent at equal tokens is length."
    )
    return [Table("Alignment of text", meaning, rows)]


def _rewrites(part: Mapping[str, Any]) -> list[Table]:
    names = {name for group in part.values() for name, entry in group.items() if entry.get("rows")}
    rows = [
        [name, *(_cell(group.get(name), column in OVERALL) for column, group in part.items())]
        for name in dict.fromkeys(name for group in part.values() for name in group)
        if name in names
    ]
    meaning = (
        "What rewriting keeps and loses. Better: a length ratio near 1, 'kept' and entailment near "
        "1, fillers and template phrases no more frequent than in the raw answer, the rest near 0."
    )
    return [Table("Raw answers against rewrites", meaning, [["", *part], *rows])]


def _optimization(part: Mapping[str, Any]) -> list[Table]:
    def table(
        title: str, meaning: str, entries: Mapping[str, Any], columns: dict[str, str]
    ) -> Table:
        body = [
            [name, *(digits(entry[key]) for key in columns.values()), str(entry["rows"])]
            for name, entry in entries.items()
        ]
        return Table(title, meaning, [["", *columns, "rows"], *body])

    return [
        table(
            "Gradient cosine of R",
            "Higher between clients: what one client learns suits the others. The cosine within a "
            "client, on half as many rows, is about the most that so few rows allow.",
            part["gradient cosine"],
            {"between clients": "mean", "within a client": "within"},
        ),
        table(
            "Loss transfer between clients",
            "Change of one client's loss after training on another; below 0, training helps.",
            part["loss transfer"],
            {"change, nats per token": "mean", "change, %": "percent"},
        ),
    ]


def _loss_table(
    title: str, meaning: str, of: str, losses: Mapping[str, Any], rows: Mapping[str, int]
) -> Table:
    models = list(dict.fromkeys(name for client in losses.values() for name in client))
    body = [
        [client, str(rows[client]), *(digits(found.get(model)) for model in models)]
        for client, found in losses.items()
    ]
    total = ["mean", str(sum(rows[client] for client in losses))]
    for model in models:
        values = [found[model] for found in losses.values() if found.get(model) is not None]
        total.append(digits(sum(values) / len(values)) if len(values) == len(losses) else "")
    meaning = f"Nats per token; lower is better. {meaning}"
    return Table(title, meaning, [["client", f"{of} rows", *models], *body, total])


def _serving(part: Mapping[str, Any]) -> list[Table]:
    meaning = (
        "R alone is the global model, R+S a client's own. R is trained beside S: where R alone is "
        "much worse than R+S, the global model depends on an S that it is served without."
    )
    return [_loss_table("Loss by branch", meaning, part["of"], part["losses"], part["rows"])]


def _aggregation(part: Mapping[str, Any]) -> list[Table]:
    size, sizes = part["norm of the mean"], part["mean of the norms"]
    numbers = {
        "error of averaging A and B instead of BA": part["product error"],
        "the same, of the worst module": part["product error, largest of a module"],
        "cosine between updates, mean over pairs": part["cosine of updates"]["mean"],
        "norm of the mean update / mean norm of the updates": size and sizes and size / sizes,
    }
    return [
        Table(
            f"Averaging, in one more round on {part['rows']} training rows",
            "Error: 0 is exact. A cosine near 0 and a ratio far below 1 mean that updates cancel.",
            [["", "value"], *([name, digits(value)] for name, value in numbers.items())],
        ),
        _loss_table(
            "Loss before and after averaging",
            "A new global model above 'own' is what averaging costs the client.",
            part["of"],
            part["losses"],
            part["loss rows"],
        ),
    ]


_TABLES = {
    "text": _text,
    "rewrites": _rewrites,
    "optimization": _optimization,
    "serving": _serving,
    "aggregation": _aggregation,
}
