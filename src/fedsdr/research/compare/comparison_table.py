"""The table of a comparison and its notes, as text, from what compare.json holds."""

from collections.abc import Mapping
from typing import Any

from fedsdr.evaluation.results import Table
from fedsdr.report.page import Section
from fedsdr.research.compare.differences import MEASURES

TITLES = {"test_rows": "test rows"}


def section_of(name: str, comparison: Mapping[str, Any]) -> Section:
    """Return the report's section of a comparison."""
    return Section(name, [table_of(comparison)], notes_of(comparison))


def table_of(comparison: Mapping[str, Any]) -> Table:
    """Return one row per kind of model and variant: losses, scores, differences and cost.

    What is the same in every row stands in the title.
    """
    rows, keys = comparison["rows"], comparison["keys"]
    suites = comparison.get("suite_settings", {})
    facts = ("algorithm", *keys, "seeds", "clients", "test_rows", "metric")
    shown = [key for key in facts if len({str(r[key]) for r in rows if r["model"] != "base"}) > 1]
    same = [f"{TITLES.get(key, key)} {rows[-1][key]}" for key in facts if key not in shown]
    measures = (*MEASURES, *suites)
    header = ["variant", *(TITLES.get(key, key) for key in shown), "model"]
    header += [text for m in measures for text in (m, f"{m} - baseline")]
    header += ["train tokens", "rewrite tokens", "train seconds", "MB up", "MB down"]
    body = [
        [row["variant"], *(str(row[key]) for key in shown), row["model"]]
        + [text for m in measures for text in (_mean_text(row, m), _difference_text(row, m))]
        + [_number(row[key]) for key in ("train_tokens", "rewrite_tokens", "train_seconds")]
        + [_number(row[way], 1e6, 2) for way in ("bytes_up", "bytes_down")]
        for row in rows
    ]
    return f"Loss, score and cost ({', '.join(same)})", [header, *body]


def notes_of(comparison: Mapping[str, Any]) -> list[str]:
    """Return what a reader of the table must know, and the runs that are missing in it."""
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
    notes += [f"{suite}: {how}." for suite, how in comparison.get("suite_settings", {}).items()]
    notes += [
        f"{suite}: left out, because runs were asked different questions ({how}); ask again: "
        f"fedsdr evaluate RUN --suite {suite} --limit N"
        for suite, how in comparison.get("suites_left_out", {}).items()
    ]
    if comparison.get("suites"):  # the rows of an older version, in tables of their own
        notes.append("public suites: not shown; update with: fedsdr compare STUDY --finished")
    notes += [
        f"{key}: no run reads it, so rows that differ in it alone are the same runs."
        for key in comparison.get("unread", [])
    ]
    if untested := comparison.get("untested"):
        notes.append(f"without test rows, and so in no mean: {', '.join(untested)}.")
    failed = {cell["folder"]: cell["failed"] for cell in comparison["cells"] if cell["failed"]}
    todo = [c for c in comparison["cells"] if not (c.get("finished", True) or c["failed"])]
    notes += [f"not finished: {cell['folder']}" for cell in todo]
    return notes + [f"failed: {folder}: {reason}" for folder, reason in failed.items()]


def _number(value: float | None, unit: float = 1, digits: int = 0) -> str:
    return "" if value is None else f"{value / unit:,.{digits}f}"


def _mean_text(row: Mapping[str, Any], measure: str) -> str:
    if row[measure] is None:
        return ""
    sd = row[f"{measure}_sd"]
    text = f"{row[measure]:.3f}" + ("" if sd is None else f" ({sd:.3f})")
    return text + _fewer_seeds(row, row.get(f"{measure}_seeds"))


def _difference_text(row: Mapping[str, Any], measure: str) -> str:
    name = f"{measure}_difference"
    if row[name] is None:
        return ""
    sd = "" if row[f"{name}_sd"] is None else f" ({row[f'{name}_sd']:.3f})"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    interval = "" if low is None else f" [{low:+.3f}, {high:+.3f}]"
    seeds = row.get(f"{name}_seeds", row["difference_seeds"])
    return f"{row[name]:+.3f}{interval}{sd}{_fewer_seeds(row, seeds)}"


def _fewer_seeds(row: Mapping[str, Any], seeds: int | None) -> str:
    fewer = seeds is not None and seeds < row["seeds"]
    return f", {seeds} seed{'s' * (seeds != 1)}" if fewer else ""
