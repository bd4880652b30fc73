"""diagnose.json as tables: a title and rows of text, the first of them the header."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedsdr.evaluation.results import to_markdown

Table = tuple[str, list[list[str]]]
OVERALL = ("all made", "all used")  # groups of rewrites beside those of each client


def tables_of(found: Mapping[str, Any]) -> list[Table]:
    """Return the tables of the parts that were measured. After a number stands its interval and,
    in brackets, how many rows it is on, unless a column says so."""
    tables: list[Table] = []
    for name, build in _TABLES.items():
        part = found.get(name, {})
        if "not measured" in part:
            tables.append((name, [["", ""], ["not measured", part["not measured"]]]))
        elif part:
            tables += build(part)
    return tables


def json_numbers(value: Any) -> Any:
    """Return the same with None for every number that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: json_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_numbers(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def markdown_of(title: str, tables: Sequence[Table]) -> str:
    """Return the tables as one Markdown page."""
    parts = [f"# {title}\n", "Each number is explained in docs/diagnose.md.\n"]
    return "\n".join(parts + [f"## {name}\n\n{to_markdown(rows)}" for name, rows in tables])


def _text(part: Mapping[str, Any]) -> list[Table]:
    kinds = ("raw", "rewritten", "change")
    overall = [["mean over pairs of clients", *kinds]]
    for measure, entry in part.items():
        tokens = entry.get("tokens a client")
        name = f"{measure} ({tokens} a client)" if tokens else measure
        overall.append([name, *(_number(entry.get(kind, {}).get("mean")) for kind in kinds)])
    whole = {name: entry for name, entry in part.items() if "change" in entry}
    columns = [(name, kind) for name in whole for kind in kinds[:2]]
    first = next(iter(whole.values()))["raw"]
    pairs = [
        [pair, *(_plain(whole[name][kind][pair]["value"]) for name, kind in columns)]
        for pair in first
        if pair != "mean"
    ]
    header = ["pair", *(f"{name}, {kind}" for name, kind in columns)]
    return [("Alignment of text", overall), ("Each pair of clients", [header, *pairs])]


def _rewrites(part: Mapping[str, Any]) -> list[Table]:
    names = dict.fromkeys(name for group in part.values() for name in group)
    rows = [
        [
            name,
            *(
                _number(group.get(name), group_name in OVERALL)
                for group_name, group in part.items()
            ),
        ]
        for name in names
        if any("not measured" in g[name] or g[name]["rows"] for g in part.values() if name in g)
    ]
    return [("Raw answers against rewrites", [["", *part], *rows])]


def _optimization(part: Mapping[str, Any]) -> list[Table]:
    cosines = [
        [name, _plain(x["mean"]), _plain(x["within"]), str(x["rows"])]
        for name, x in part["gradient cosine"].items()
    ]
    transfers = [
        [name, _plain(x["mean"]), _plain(x["percent"], 2), str(x["rows"])]
        for name, x in part["loss transfer"].items()
    ]
    return [
        (
            "Gradient cosine of R",
            [["", "between clients", "within a client", "rows"], *cosines],
        ),
        (
            "Loss transfer between clients",
            [["", "change, nats a token", "change, %", "rows"], *transfers],
        ),
    ]


def _losses(title: str, of: str, losses: Mapping[str, Any], rows: Mapping[str, int]) -> Table:
    columns = list(dict.fromkeys(name for of_client in losses.values() for name in of_client))
    body = [
        [client, str(rows[client]), *(_plain(of_client.get(name)) for name in columns)]
        for client, of_client in losses.items()
    ]
    means = []
    for name in columns:
        values = [x[name] for x in losses.values() if x.get(name) is not None]
        means.append(_plain(sum(values) / len(values)) if len(values) == len(losses) else "")
    total = ["mean", str(sum(rows[client] for client in losses)), *means]
    return (f"{title} (nats a token)", [["client", f"{of} rows", *columns], *body, total])


def _serving(part: Mapping[str, Any]) -> list[Table]:
    return [_losses("Loss by branch", part["of"], part["losses"], part["rows"])]


def _aggregation(part: Mapping[str, Any]) -> list[Table]:
    clients, norms = str(len(part["norm of updates"])), part["norm of updates"]
    numbers = {
        "error of averaging A and B, of the mean of BA": part["product error"],
        "the same, of the worst module": part["product error, largest of a module"],
        "cosine between updates, mean over pairs": part["cosine of updates"]["mean"],
        "norm of the mean update": part["norm of the mean"],
        "mean norm of the updates": part["mean of the norms"],
        **{f"norm of the update of {client}": value for client, value in norms.items()},
    }
    rows = [[name, _plain(value), clients] for name, value in numbers.items()]
    title = f"Averaging, in one more round on {part['rows']} training rows"
    return [
        (title, [["", "value", "clients"], *rows]),
        _losses("Loss before and after averaging", part["of"], part["losses"], part["loss rows"]),
    ]


_TABLES = {
    "text": _text,
    "rewrites": _rewrites,
    "optimization": _optimization,
    "serving": _serving,
    "aggregation": _aggregation,
}


def _number(entry: Mapping[str, Any] | None, with_interval: bool = True) -> str:
    """0.412 [0.398, 0.431] (120): value, interval, rows."""
    if entry is None:
        return ""
    if "not measured" in entry:
        return f"not measured: {entry['not measured']}"
    if entry["value"] is None:
        return f"({entry['rows']})"
    ends = entry.get("interval") if with_interval else None
    interval = f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else ""
    return f"{entry['value']:.3f}{interval} ({entry['rows']})"


def _plain(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}"
