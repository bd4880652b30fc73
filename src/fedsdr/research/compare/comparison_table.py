"""The table of a comparison and its notes, as text, from what compare.json holds."""

from collections.abc import Mapping
from typing import Any

from fedsdr.evaluation.results import Table
from fedsdr.report.page import Section
from fedsdr.research.compare.differences import MEASURES


def section_of(name: str, comparison: Mapping[str, Any]) -> Section:
    """Return the report's section of a comparison."""
    return Section(name, [table_of(comparison)], notes_of(comparison))


def table_of(comparison: Mapping[str, Any]) -> Table:
    """Return one row per kind of model and variant: losses, scores, differences and cost.

    What is the same in every row is in the title.
    """
    rows = comparison["rows"]
    names = ("algorithm", *comparison["keys"], "seeds", "clients", "test_rows", "metric")
    facts = {key: "test rows" if key == "test_rows" else key for key in names}  # key -> shown as
    shown = [key for key in facts if len({str(r[key]) for r in rows if r["model"] != "base"}) > 1]
    same = [f"{name} {rows[-1][key]}" for key, name in facts.items() if key not in shown]
    measures = (*MEASURES, *comparison.get("suite_settings", {}))
    header = ["variant", *(facts[key] for key in shown), "model"]
    header += [text for m in measures for text in (m, f"{m} - baseline")]
    header += ["train tokens", "rewrite tokens", "train seconds", "MB up", "MB down"]
    body = [
        [row["variant"], *(str(row[key]) for key in shown), row["model"]]
        + [text for m in measures for text in (_mean(row, m), _difference(row, f"{m}_difference"))]
        + [_number(row[key]) for key in ("train_tokens", "rewrite_tokens", "train_seconds")]
        + [_number(row[way], 1e6, 2) for way in ("bytes_up", "bytes_down")]
        for row in rows
    ]
    return f"Loss, score and cost ({', '.join(same)})", [header, *body]


def notes_of(comparison: Mapping[str, Any]) -> list[str]:
    """Return how to read the table, and the runs that it lacks."""
    suites = [f"{suite} ({how})" for suite, how in comparison.get("suite_settings", {}).items()]
    notes = [
        "loss: nats per supervised token of the raw answers; loss and score: mean over clients, "
        "then over seeds (standard deviation over seeds).",
        f"difference (- baseline): to '{comparison['baseline']}' with the same algorithm, sweep "
        "point, seeds and kind of model [95 % paired bootstrap interval over test rows, resampled "
        "within each client; none if a client has fewer than two rows] (standard deviation over "
        "seeds).",
        "cost: of one run, mean over seeds. Rewrites are made once and shared by all runs: these "
        f"took {comparison['rewriting_seconds']:,.0f} s, cached ones not counted.",
    ]
    if suites:
        notes.append(f"public suites: {'; '.join(suites)}.")
    if unlike := comparison.get("suites_left_out"):
        notes.append(
            f"left out, because not every run was asked the same questions: {', '.join(unlike)}; "
            "ask them again: fedsdr evaluate RUN --suite NAME --limit N"
        )
    failed = {cell["folder"]: cell["failed"] for cell in comparison["cells"] if cell["failed"]}
    todo = [c for c in comparison["cells"] if not (c.get("finished", True) or c["failed"])]
    notes += [f"not finished: {cell['folder']}" for cell in todo]
    return notes + [f"failed: {folder}: {reason}" for folder, reason in failed.items()]


def _number(value: float | None, unit: float = 1, digits: int = 0) -> str:
    return "" if value is None else f"{value / unit:,.{digits}f}"


def _spread(row: Mapping[str, Any], name: str) -> str:
    sd = row[f"{name}_sd"]
    return "" if sd is None else f" ({sd:.3f})"


def _mean(row: Mapping[str, Any], name: str) -> str:
    return "" if row[name] is None else f"{row[name]:.3f}{_spread(row, name)}"


def _difference(row: Mapping[str, Any], name: str) -> str:
    if row[name] is None:
        return ""
    low, high, common = row[f"{name}_low"], row[f"{name}_high"], row["difference_seeds"]
    interval = "" if low is None else f" [{low:+.3f}, {high:+.3f}]"
    fewer = f", {common} seed{'s' * (common != 1)}" if common < row["seeds"] else ""
    return f"{row[name]:+.3f}{interval}{_spread(row, name)}{fewer}"
