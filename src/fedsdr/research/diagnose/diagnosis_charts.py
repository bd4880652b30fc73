"""The report's group of a diagnosis: matrices of the clients, the paradox, and its tables."""

from collections.abc import Iterable, Mapping
from typing import Any

from fedsdr.report.charts import MOST_LABELS, Chart, Dot, dot_chart, heat_map
from fedsdr.report.page import Group
from fedsdr.research.diagnose.summary import OVERALL, tables_of

_KEPT = {
    "final number kept": "final number",
    "numbers kept": "numbers",
    "capitalised names kept": "names",
}


def groups_of(found: Mapping[str, Any]) -> list[Group]:
    """Return the charts and tables of diagnose.json."""
    clients = list(found["clients"])
    charts = [
        *_pair_maps(found.get("text", {}), clients),
        *_rewrite_dots(found.get("rewrites", {})),
    ]
    charts += _transfer_maps(found.get("optimization", {}), clients)
    tables = [(f"{title}. {meaning}", rows) for title, meaning, rows in tables_of(found)]
    return [Group("Diagnosis: alignment and the Rewrite Paradox", charts, tables)]


def _pair_maps(text: Mapping[str, Any], clients: list[str]) -> Iterable[Chart]:
    """Yield a map of the pairs of clients for each measure, raw and rewritten."""
    for measure, kinds in text.items() if len(clients) <= MOST_LABELS else ():
        if not isinstance(kinds, Mapping):
            continue
        for kind in ("raw", "rewritten"):
            cells: dict[str, dict[str, float | None]] = {c: {} for c in clients}
            for a in clients:
                for b in clients:
                    entry = kinds.get(kind, {}).get(f"{a} / {b}")
                    if entry and entry["value"] is not None:
                        cells[a][b] = cells[b][a] = entry["value"]
            if any(cells.values()):
                labels = ("client", "client", measure)
                ordered = {a: {b: cells[a].get(b) for b in clients} for a in clients}
                yield heat_map(f"{measure}, {kind} answers", ordered, labels)


def _rewrite_dots(rewrites: Mapping[str, Any]) -> Iterable[Chart]:
    """Yield the length ratio and what is kept, by client, of the rewrites in use."""
    groups = {name: signs for name, signs in rewrites.items() if isinstance(signs, Mapping)}
    by_client = {n: signs for n, signs in groups.items() if n not in OVERALL[:1]}
    lengths = _dots(by_client, {"length ratio, mean": "length"})
    kept = _dots(by_client, _KEPT)
    if lengths:
        unit = "words of the rewrite / of the raw answer (1 is best)"
        yield dot_chart("Rewrite Paradox: length", lengths, unit, reference=1.0)
    if kept:
        unit = "share kept in the rewrite (1 is best)"
        yield dot_chart("Rewrite Paradox: what is kept", kept, unit, reference=1.0)


def _dots(by_client: Mapping[str, Any], names: Mapping[str, str]) -> list[Dot]:
    return [
        Dot(client, series, entry["value"], *(entry.get("interval") or (None, None)))
        for client, signs in by_client.items()
        for name, series in names.items()
        if (entry := signs.get(name)) and entry["value"] is not None
    ]


def _transfer_maps(optimization: Mapping[str, Any], clients: list[str]) -> Iterable[Chart]:
    """Yield how training on one client changes the loss of another."""
    for name, entry in optimization.get("loss transfer", {}).items():
        if len(clients) <= MOST_LABELS and entry.get("matrix"):
            cells = {
                a: dict(zip(clients, row, strict=True))
                for a, row in zip(clients, entry["matrix"], strict=True)
            }
            labels = ("trained on", "loss of", "change of loss")
            yield heat_map(f"Loss transfer, {name}", cells, labels, diverging=True)
