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
    parts = [
        f"# {title}",
        *(f"## {t.title}\n\n{t.meaning}\n\n{to_markdown(t.rows)}" for t in tables),
    ]
    return "\n\n".join([*parts, *(f"- {note}" for note in notes)]) + "\n"


def digits(value: float | None) -> str:
    """Return a number with three significant digits; '' for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def cell(entry: Mapping[str, Any] | None, with_interval: bool = True) -> str:
    """Return value, interval and rows of an entry, as in `0.412 [0.398, 0.431] (120)`."""
    if not entry or entry.get("value") is None:
        return ""
    ends = entry.get("interval") if with_interval else None
    interval = f" [{digits(ends[0])}, {digits(ends[1])}]" if ends else ""
    return f"{digits(entry['value'])}{interval} ({entry['rows']})"


def _text(part: Mapping[str, Any]) -> list[Table]:
    kinds = ("raw", "rewritten", "change")
    rows = [["mean over pairs of clients", *kinds]]
    for measure, entry in part.items():
        tokens = entry.get("tokens a client")
        name = f"{measure} ({tokens} a client)" if tokens else measure
        rows.append([name, *(cell(entry.get(kind, {}).get("mean")) for kind in kinds)])
    meaning = (
        "Similarity of the clients' answers. A lower divergence and a higher cosine after "
        "rewriting mean better aligned clients; a fall that is absent at equal tokens is length."
    )
    return [Table("Alignment of text", meaning, rows)]


def _rewrites(part: Mapping[str, Any]) -> list[Table]:
    names = dict.fromkeys(name for group in part.values() for name in group)
    rows = [
        [
            name,
            *(cell(group.get(name), group_name in OVERALL) for group_name, group in part.items()),
        ]
        for name in names
        if any(group.get(name, {}).get("rows") for group in part.values())
    ]
    meaning = (
        "What rewriting keeps and loses. Better: a length ratio near 1, 'kept' and entailment near "
        "1, fillers and template phrases no more frequent than in the raw answer, the rest near 0."
    )
    return [Table("Raw answers against rewrites", meaning, [["", *part], *rows])]


def _optimization(part: Mapping[str, Any]) -> list[Table]:
    cosines = [
        [name, digits(x["mean"]), digits(x["within"]), str(x["rows"])]
        for name, x in part["gradient cosine"].items()
    ]
    transfers = [
        [name, digits(x["mean"]), digits(x["percent"]), str(x["rows"])]
        for name, x in part["loss transfer"].items()
    ]
    return [
        Table(
            "Gradient cosine of R",
            "Higher between clients: what one client learns suits the others. The cosine within a "
            "client, on half as many rows, is about the most that so few rows allow.",
            [["", "between clients", "within a client", "rows"], *cosines],
        ),
        Table(
            "Loss transfer between clients",
            "Change of one client's loss after training on another. Below 0: training on one "
            "client helps the others.",
            [["", "change, nats per token", "change, %", "rows"], *transfers],
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
    means = []
    for model in models:
        values = [x[model] for x in losses.values() if x.get(model) is not None]
        means.append(digits(sum(values) / len(values)) if len(values) == len(losses) else "")
    total = ["mean", str(sum(rows[client] for client in losses)), *means]
    meaning = f"Nats per token; lower is better. {meaning}"
    return Table(title, meaning, [["client", f"{of} rows", *models], *body, total])


def _serving(part: Mapping[str, Any]) -> list[Table]:
    meaning = (
        "R alone is the global model, R+S a client's own. R is trained beside S: where R alone is "
        "much worse than R+S, the global model depends on an S that it is served without."
    )
    return [_loss_table("Loss by branch", meaning, part["of"], part["losses"], part["rows"])]


def _aggregation(part: Mapping[str, Any]) -> list[Table]:
    numbers = {
        "error of averaging A and B instead of BA": part["product error"],
        "the same, of the worst module": part["product error, largest of a module"],
        "cosine between updates, mean over pairs": part["cosine of updates"]["mean"],
        "norm of the mean update / mean norm of the updates": _ratio(
            part["norm of the mean"], part["mean of the norms"]
        ),
    }
    return [
        Table(
            f"Averaging, in one more round on {part['rows']} training rows",
            "Error: 0 is exact. A cosine near 0 and a ratio far below 1 mean that the clients' "
            "updates cancel.",
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


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


_TABLES = {
    "text": _text,
    "rewrites": _rewrites,
    "optimization": _optimization,
    "serving": _serving,
    "aggregation": _aggregation,
}
