"""Tables and notes of a comparison, as text, from the rows that compare.json holds."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from fedsdr.report.page import Section
from fedsdr.research.compare.differences import MEASURES
from fedsdr.research.compare.reference import paper_note, paper_table

MOST_COLUMNS = 12  # clients in one table


def section_of(name: str, comparison: Mapping[str, Any]) -> Section:
    """Return the report's section of a comparison."""
    return Section(name, list(tables_in(comparison).items()), notes_of(comparison))


def tables_in(
    comparison: Mapping[str, Any], *, by_client: bool = True
) -> dict[str, list[list[str]]]:
    """Return the tables of a comparison by title; the paper's numbers are in one of their own."""
    rows, keys, paper = comparison["rows"], comparison["keys"], comparison["paper"]
    suites = comparison.get("suites", [])  # none in a file of an older version
    tables = tables_of(rows, keys)
    if by_client:
        tables |= client_tables_of(comparison.get("by_client", []), keys)
    tables |= suite_tables_of(suites, keys)
    if paper is not None:
        tables["Beside the paper"] = paper_table(rows, keys, paper, suites)
    return tables


def tables_of(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> dict[str, list[list[str]]]:
    """Return tables as text by title: one of each kind of model, and one of cost.

    Each begins with its header; `keys` are those of a sweep.
    """
    run = ["variant", "algorithm", *keys, "seeds"]
    measured = ["clients", "test rows", "loss", "loss - baseline", "score", "score - baseline"]
    tables = {
        title: [[*run, *measured, "metric"]]
        + [
            [*(str(row[key]) for key in run), str(row["clients"]), str(row["test_rows"])]
            + [text(row, m) for m in MEASURES for text in (_mean_text, _difference_text)]
            + [row["metric"]]
            for row in rows
            if row["model"] == model
        ]
        for model, title in (("global", "Global models"), ("client", "The clients' own models"))
    }
    costs = ["train tokens", "rewrite tokens", "train seconds", "MB up", "MB down"]
    tables["Cost of a run"] = [[*run, *costs]] + [
        [*(str(row[key]) for key in run), f"{row['train_tokens']:,.0f}"]
        + [f"{row['rewrite_tokens']:,.0f}", f"{row['train_seconds']:,.0f}"]
        + [f"{row[way] / 1e6:,.2f}" for way in ("bytes_up", "bytes_down")]
        for row in rows
        if row["model"] == "global"
    ]
    return tables


def client_tables_of(
    rows: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> dict[str, list[list[str]]]:
    """Return the rows of `client_rows` as tables of text by title, a column each client; none for
    more clients than a page is wide enough for.

    The base, which every variant starts from, is a row of the global models' tables.
    """
    clients = sorted({row["client"] for row in rows})
    if len(clients) > MOST_COLUMNS:
        return {}
    run = ["variant", "algorithm", *keys, "seeds"]
    kinds = {"global": "global models", "client": "the clients' own models"}
    tables = {}
    for measure, (model, title) in itertools.product(MEASURES, kinds.items()):
        lines: dict[tuple[str, ...], dict[str, str]] = {}
        for row in rows:
            if row["model"] == "base" and model == "global":
                line = ("base", "", *(str(row[key]) for key in keys), "")
            elif row["model"] == model:
                line = tuple(str(row[key]) for key in run)
            else:
                continue
            lines.setdefault(line, {})[row["client"]] = f"{row[measure]:.3f}"
        body = [[*line, *(of.get(name, "") for name in clients)] for line, of in lines.items()]
        tables[f"{measure.capitalize()} by client: {title}"] = [[*run, *clients], *body]
    return tables


def suite_tables_of(
    rows: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> dict[str, list[list[str]]]:
    """Return the rows of `suite_rows` as tables of text by title, one of each kind of model."""
    run = ["suite", "variant", "algorithm", *keys, "seeds"]
    titles = {
        "global": "Public suites: global models",
        "client": "Public suites: the clients' own models",
    }
    return {
        title: [[*run, "shots", "questions", "base", "score", "score - baseline"]]
        + [
            [
                *(str(row[key]) for key in (*run, "shots", "questions")),
                f"{row['base']:.3f}",
                _mean_text(row, "score"),
                _difference_text(row, "score"),
            ]
            for row in sorted(rows, key=lambda row: row["suite"])
            if row["model"] == model
        ]
        for model, title in titles.items()
        if any(row["model"] == model for row in rows)
    }


def notes_of(comparison: Mapping[str, Any]) -> list[str]:
    """Return what must be known to read the table, and the cells that failed."""
    notes = [
        "loss: nats a supervised token of the raw answers; loss and score: mean over clients, "
        "then over seeds (standard deviation over seeds).",
        f"difference: to '{comparison['baseline']}' with the same algorithm, sweep point, seeds "
        "and kind of model [95 % paired bootstrap interval over test rows, drawn within each "
        "client, these seeds being given; none where a client has fewer than two] (its standard "
        "deviation over seeds).",
        "cost: a run, mean over seeds. Rewrites are made once and shared by all cells: these took "
        f"{comparison['rewriting_seconds']:,.0f} s beside those that were in the cache.",
    ]
    if comparison["paper"] is not None:
        data = comparison["data"]
        data = ", ".join(data) if isinstance(data, list) else data
        notes.append(paper_note(comparison["paper"], comparison["model"], data))
    notes += [
        f"{suite}: left out, since it was not asked alike ({how}); ask again: fedsdr evaluate RUN "
        f"--suite {suite} --limit N"
        for suite, how in comparison.get("suites_left_out", {}).items()
    ]
    notes += [
        f"{key}: no run reads it, so that rows which differ in it alone are the same runs."
        for key in comparison.get("unread", [])
    ]
    if untested := comparison.get("untested"):
        names = ", ".join(untested)
        notes.append(f"without test rows, and so in no mean: {names}.")
    failed = {cell["folder"]: cell["failed"] for cell in comparison["cells"] if cell["failed"]}
    todo = [c for c in comparison["cells"] if not (c.get("finished", True) or c["failed"])]
    notes += [f"not finished: {cell['folder']}" for cell in todo]
    return notes + [f"failed: {folder}: {reason}" for folder, reason in failed.items()]


def _mean_text(row: Mapping[str, Any], measure: str) -> str:
    sd = row[f"{measure}_sd"]
    return f"{row[measure]:.3f}" + ("" if sd is None else f" ({sd:.3f})")


def _difference_text(row: Mapping[str, Any], measure: str) -> str:
    name = f"{measure}_difference"
    if row[name] is None:
        return ""
    sd = "" if row[f"{name}_sd"] is None else f" ({row[f'{name}_sd']:.3f})"
    seeds, low = row["difference_seeds"], row[f"{name}_low"]
    fewer = f", {seeds} seed{'s' * (seeds > 1)}" if seeds < row["seeds"] else ""
    interval = "" if low is None else f" [{low:+.3f}, {row[f'{name}_high']:+.3f}]"
    return f"{row[name]:+.3f}{interval}{sd}{fewer}"
