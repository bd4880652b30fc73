"""The table of a comparison and its notes, as text, from what compare.json holds."""

from collections.abc import Mapping
from typing import Any

from fedsdr.evaluation.results import Table
from fedsdr.research.compare.front import front_tables
from fedsdr.research.compare.model_values import MEASURES, MODEL_MEASURES
from fedsdr.research.compare.tuning import tuning_table

_ARROWS = {"loss": "↓"}  # scores and suites: ↑


def tables_of(comparison: Mapping[str, Any]) -> list[Table]:
    """Return the table of variants and that of what their models say and keep; the curves by round
    and the differences at equal gain; with several draws, the parts of the variance; with tuning,
    what was tried and picked."""
    tables = [table_of(comparison), *_model_tables(comparison)]
    if front := comparison.get("front"):  # older: none
        tables += front_tables(front)
    if comparison.get("variance"):
        tables.append(_variance_table(comparison))
    if comparison.get("tuning"):
        tables.append(tuning_table(comparison["tuning"], comparison["tune_model"]))
    return tables


def _variance_table(comparison: Mapping[str, Any]) -> Table:
    places = ["algorithm", *comparison["keys"], "model", "measure"]
    parts = {"draw": "draw", "variant_by_draw": "variant x draw", "seed": "seed", "rows": "rows"}
    body = []
    for row in comparison["variance"]:
        total = sum(row[part] or 0.0 for part in parts)
        shares = ["" if row[p] is None or not total else f"{row[p] / total:.0%}" for p in parts]
        body.append([*(str(row[key]) for key in places), *shares, f"{total**0.5:.4f}"])
    return "Variance of one run's value", [[*places, *parts.values(), "total sd"], *body]


def table_of(comparison: Mapping[str, Any]) -> Table:
    """Return one row per kind of model and variant: losses, scores, differences and cost.

    What is the same in every row is in the title.
    """
    rows = comparison["rows"]
    names = ("algorithm", *comparison["keys"], "draws", "seeds", "clients", "test_rows", "metric")
    facts = {key: "test rows" if key == "test_rows" else key for key in names}  # key -> shown as
    facts = {key: name for key, name in facts.items() if key in rows[-1]}  # older: no draws
    shown = [key for key in facts if len({str(r[key]) for r in rows if r["model"] != "base"}) > 1]
    same = [f"{name} {rows[-1][key]}" for key, name in facts.items() if key not in shown]
    measures = (*MEASURES, *comparison.get("suite_settings", {}))
    header = ["variant", *(facts[key] for key in shown), "model"]
    header += [t for m in measures for t in (f"{m} {_ARROWS.get(m, '↑')}", f"{m} - baseline")]
    header += ["train tokens", "rewrite tokens", "train seconds", "MB up", "MB down"]
    body = [
        [row["variant"], *(str(row[key]) for key in shown), row["model"]]
        + [text for m in measures for text in (_mean(row, m), _difference(row, f"{m}_difference"))]
        + [_number(row[key]) for key in ("train_tokens", "rewrite_tokens", "train_seconds")]
        + [_number(row[way], 1e6, 2) for way in ("bytes_up", "bytes_down")]
        for row in rows
    ]
    return f"Loss, score and cost ({', '.join(same)})", [header, *body]


def _model_tables(comparison: Mapping[str, Any]) -> list[Table]:
    """Return the table of the answer audit and retention, one row per measure, model and variant;
    none if no run has them."""
    rows, keys = comparison["rows"], ("algorithm", *comparison["keys"])
    shown = [k for k in keys if len({str(r[k]) for r in rows if r["model"] != "base"}) > 1]
    body = [
        [
            name,
            row["variant"],
            *(str(row[key]) for key in shown),
            row["model"],
            _mean(row, measure),
            _difference(row, f"{measure}_difference"),
        ]
        for measure, name in MODEL_MEASURES.items()
        for row in rows
        if row.get(measure) is not None
    ]
    header = ["measure", "variant", *shown, "model", "value", "value - baseline"]
    return [("What the models say and keep", [header, *body])] if body else []


def notes_of(comparison: Mapping[str, Any]) -> list[str]:
    """Return how to read the table, and the runs that it lacks."""
    suites = [f"{suite} ({how})" for suite, how in comparison.get("suite_settings", {}).items()]
    several = max(row.get("draws", 1) for row in comparison["rows"]) > 1
    over = "draws of the data" if several else "seeds"
    interval = (
        "paired t interval over draws, with the noise of the test rows that draws do not share in "
        "it; none for one draw; 'n more': draws that would take zero out of it if mean and spread "
        "stayed"
        if several
        else "paired bootstrap interval over test rows, resampled within each client; none if a "
        "client has fewer than two rows"
    )
    notes = [
        "loss: nats per supervised token of the raw answers; loss and score: mean over clients, "
        f"then over {over} (standard deviation over {over}).",
        f"difference (- baseline): to '{comparison['baseline']}' with the same algorithm, sweep "
        f"point, draws, seeds and kind of model [95 % {interval}] (standard deviation over "
        f"{over}).",
        "cost: of one run, mean over runs. Rewrites are made once and shared by all runs: these "
        f"took {comparison['rewriting_seconds']:,.0f} s, cached ones not counted.",
    ]
    if shared := comparison.get("shared_test_rows"):
        notes.append(
            f"draws: two have {shared:.0%} of their test rows in common on average. Intervals are "
            "too narrow by the noise of these rows: they are about this pool of rows, not new ones."
        )
    if comparison.get("variance"):
        notes.append(
            "variance: shares of the variance of one run's value; 'variant x draw' makes a "
            "difference depend on the draw, and with one seed it holds the seed's part."
        )
    if any(row.get("left_out") for row in (comparison.get("front") or {}).get("equal_gain", ())):
        notes.append(
            "at equal gain, 'left out' counts pairs of runs of which one never gains or was not "
            "measured; the others are chosen by their outcome, so there is no interval."
        )
    if suites:
        notes.append(f"public suites: {'; '.join(suites)}.")
    if unlike := comparison.get("suites_left_out"):
        notes.append(
            f"left out, because not every run was asked the same questions: {', '.join(unlike)}; "
            "ask them again: fedsdr evaluate RUN --suite NAME --limit N"
        )
    cells = all_cells(comparison)
    failed = {cell["folder"]: cell["failed"] for cell in cells if cell["failed"]}
    todo = [cell for cell in cells if not (cell.get("finished", True) or cell["failed"])]
    if untuned := comparison.get("untuned"):
        notes.append(f"left out until its tuning is finished: {'; '.join(untuned)}.")
    notes += [f"not finished: {cell['folder']}" for cell in todo]
    return notes + [f"failed: {folder}: {reason}" for folder, reason in failed.items()]


def all_cells(comparison: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the cells of tuning and those that count."""
    return [*comparison.get("tuning_cells", ()), *comparison["cells"]]


def _number(value: float | None, unit: float = 1, digits: int = 0) -> str:
    return "" if value is None else f"{value / unit:,.{digits}f}"


def _spread(row: Mapping[str, Any], name: str) -> str:
    sd = row[f"{name}_sd"]
    return "" if sd is None else f" ({sd:.3f})"


def _mean(row: Mapping[str, Any], name: str) -> str:
    if row[name] is None:
        return ""
    return f"{row[name]:.3f}{_spread(row, name)}{_fewer(row, name)}"


def _difference(row: Mapping[str, Any], name: str) -> str:
    if row[name] is None:
        return ""
    low, high, more = row[f"{name}_low"], row[f"{name}_high"], row.get(f"{name}_more_draws")
    interval = "" if low is None else f" [{low:+.3f}, {high:+.3f}]"
    needed = f", {more} more" if more else ""
    return f"{row[name]:+.3f}{interval}{_spread(row, name)}{_fewer(row, name)}{needed}"


def _fewer(row: Mapping[str, Any], name: str) -> str:
    """Return the seeds and the draws of a value where its row has more."""
    older = "difference_" if name.endswith("_difference") else ""  # one count for all measures
    text = ""
    for what in ("seeds", "draws"):
        count = row.get(f"{name}_{what}", row.get(f"{older}{what}", 1))
        if count < row.get(what, 1):
            text += f", {count} {what if count != 1 else what[:-1]}"
    return text
