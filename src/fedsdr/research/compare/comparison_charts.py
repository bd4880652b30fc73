"""The report's section of a comparison: its charts, tables and sentences."""

from collections.abc import Iterable, Mapping
from typing import Any

from fedsdr.report.charts import Chart, Dot, dot_chart, scatter_chart
from fedsdr.report.page import Group, Section
from fedsdr.research.compare.comparison_table import all_cells, notes_of, tables_of
from fedsdr.research.compare.front import LOST
from fedsdr.research.compare.model_values import MEASURES

FEW_SEEDS = 3
MOST_NAMED = 4  # variants in a sentence
_HOW = ("lower", "higher", "not clearly different")
_UNITS = {"loss": ("loss, nats per token", "left"), "score": ("score", "right")}


def section_of(name: str, comparison: Mapping[str, Any]) -> Section:
    """Return the report's section of a comparison."""
    tables, charts = tables_of(comparison), []
    models = _models(comparison)
    for model in models:
        for measure in MEASURES:
            charts += _difference_chart(comparison, model, measure)
    for model in models:
        charts += [*_run_chart(comparison, model), *_front_chart(comparison, model)]
    cells = all_cells(comparison)
    done = sum(cell.get("finished", not cell["failed"]) for cell in cells)
    without = "".join(f"; without {group}" for group in comparison.get("untuned", ()))
    return Section(
        title=name,
        groups=[Group("Differences to the baseline", charts), Group("Tables", (), tables)],
        findings=[*_findings(comparison, models)],
        warnings=[*_warnings(comparison)],
        facts={
            "Runs": f"{done} of {len(cells)} finished{without}",
            "Baseline": comparison["baseline"],
            "Variants": ", ".join(dict.fromkeys(c["variant"] for c in comparison["cells"])),
            "Swept keys": ", ".join(comparison["keys"]) or "none",
        },
        notes=notes_of(comparison),
    )


def _models(comparison: Mapping[str, Any]) -> list[str]:
    """Return the kinds of model to draw: "client" only if a variant has models of its own."""
    losses = {
        model: {
            place_of(r, comparison): r["loss"] for r in comparison["rows"] if r["model"] == model
        }
        for model in ("global", "client")
    }
    return [m for m, of in losses.items() if of and (m == "global" or of != losses["global"])]


def place_of(row: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    """Return a variant with what it shares with no other row: its algorithm and swept values."""
    keys = [
        key
        for key in ("algorithm", *comparison["keys"])
        if len({str(r.get(key)) for r in comparison["rows"] if r["model"] != "base"}) > 1
    ]
    return ", ".join([row["variant"], *(str(row[key]) for key in keys)])


def _difference_chart(comparison: Mapping[str, Any], model: str, measure: str) -> list[Chart]:
    """Return a dot a variant with its interval, ordered, and a dot a draw and seed beside it."""
    unit, better = _UNITS[measure]
    rows = [r for r in comparison["rows"] if r["model"] == model]
    known = [r for r in rows if r[f"{measure}_difference"] is not None]
    known.sort(key=lambda r: r[f"{measure}_difference"], reverse=measure == "score")
    dots = [
        Dot(
            place_of(r, comparison),
            "mean",
            *(r[f"{measure}_difference{end}"] for end in ("", "_low", "_high")),
        )
        for r in known
    ]
    dots += _paired(comparison, model, measure, {dot.name for dot in dots})
    title = f"{measure.title()} of the {'own' if model == 'client' else model} models"
    axis = f"{unit}, minus that of {comparison['baseline']} ({better} is better)"
    return [dot_chart(title, dots, axis)] if dots else []


def _paired(
    comparison: Mapping[str, Any], model: str, measure: str, places: set[str]
) -> Iterable[Dot]:
    """Yield the difference of each run to the baseline's run of the same draw and seed."""
    runs = [r for r in comparison.get("runs", ()) if r["model"] == model]
    matched = ("algorithm", *comparison["keys"], "data_seed", "seed")
    baseline = {
        tuple(str(r[key]) for key in matched): r[measure]
        for r in runs
        if r["variant"] == comparison["baseline"]
    }
    for run in runs:
        place = place_of(run, comparison)
        other = baseline.get(tuple(str(run[key]) for key in matched))
        if place in places and other is not None:
            note = f"{place}, draw {run['data_seed']}, seed {run['seed']}"
            yield Dot(place, "one run", run[measure] - other, note=note)


def _run_chart(comparison: Mapping[str, Any], model: str) -> list[Chart]:
    """Return the loss of every run, a dot a run, ordered by the mean of its variant."""
    runs = [r for r in comparison.get("runs", ()) if r["model"] == model]
    means = {place_of(r, comparison): r["loss"] for r in comparison["rows"] if r["model"] == model}
    dots = [
        Dot(place, "one run", r["loss"], note=f"{place}, draw {r['data_seed']}, seed {r['seed']}")
        for r in sorted(runs, key=lambda r: means[place_of(r, comparison)])
        if (place := place_of(r, comparison))
    ]
    title = f"Loss of the {'own' if model == 'client' else model} models, every run"
    base = [r["loss"] for r in comparison["rows"] if r["model"] == "base"]
    reference = base[0] if len(base) == 1 else None
    unit = "loss, nats per token (left is better)" + ("; line: base" if reference else "")
    return [dot_chart(title, dots, unit, reference)] if dots else []


def _front_chart(comparison: Mapping[str, Any], model: str) -> list[Chart]:
    """Return the gain of each variant after each round against its drift, from the base on."""
    curves = (comparison.get("front") or {"curves": []})["curves"]
    points = [
        (f"round {r['round']}", place_of(r, comparison), r["drift"], r["gain"])
        for r in curves
        if r["model"] == model and r["drift"] is not None
    ]
    title = f"Gain against forgetting, {'own' if model == 'client' else model} models"
    axes = ("drift, KL from the base (left is better)", "fall of the loss (up is better)")
    return [scatter_chart(title, points, *axes, joined=True)] if points else []


def _findings(comparison: Mapping[str, Any], models: Iterable[str]) -> Iterable[str]:
    """Yield, for each kind of model, what intervals tell apart from the baseline.

    In loss, and in what is lost at equal gain where that is clear.
    """
    equal = (comparison.get("front") or {"equal_gain": []})["equal_gain"]
    for model in models:
        whose = "the clients' own models" if model == "client" else "the global model"
        against = f"{whose} against {comparison['baseline']}"
        keys = ("loss_difference", "loss_difference_low", "loss_difference_high")
        of_model = [row for row in comparison["rows"] if row["model"] == model]
        losses = [(place_of(row, comparison), *(row[key] for key in keys)) for row in of_model]
        if told := _told_apart(losses):
            parts = [f"{how}: {_some(told[how])}" for how in _HOW if how in told]
            yield f"Loss of {against}: {'; '.join(parts)}."
        for measure, name in LOST.items():
            rows = [r for r in equal if (r["model"], r["measure"]) == (model, measure)]
            told = _told_apart(
                (place_of(row, comparison), row["difference"], row["low"], row["high"])
                for row in rows
            )
            parts = [f"{how}: {_some(told[how])}" for how in _HOW[:2] if how in told]
            lacking = [
                f"{place_of(r, comparison)} ({r['left_out']})" for r in rows if r.get("left_out")
            ]
            if lacking:
                parts.append(f"no interval, because pairs of runs are left out: {_some(lacking)}")
            if parts:
                yield f"At equal gain, {name.rstrip(' ↓')}, {against}: {'; '.join(parts)}."


def _told_apart(
    differences: Iterable[tuple[str, float | None, float | None, float | None]],
) -> dict[str, list[str]]:
    """Return the places of (place, difference, low, high) as text, by how they differ from 0."""
    said: dict[str, list[str]] = {}
    for place, value, low, high in differences:
        if value is None:
            continue
        text, how = f"{place} ({value:+.3f})", _HOW[2]
        if low is not None and high is not None:
            text = f"{place} ({value:+.3f} [{low:+.3f}, {high:+.3f}])"
            if low * high > 0:
                how = _HOW[0] if value < 0 else _HOW[1]
        said.setdefault(how, []).append(text)
    return said


def _some(variants: list[str]) -> str:
    more = len(variants) - MOST_NAMED
    return ", ".join(variants[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _warnings(comparison: Mapping[str, Any]) -> Iterable[str]:
    cells, rows = all_cells(comparison), comparison["rows"]
    if not any(row["variant"] == comparison["baseline"] for row in rows):
        yield f"The baseline '{comparison['baseline']}' has no finished run: nothing to compare to."
    failed = sum(bool(cell["failed"]) for cell in cells)
    todo = sum(not cell.get("finished", True) and not cell["failed"] for cell in cells)
    if failed or todo:
        yield f"Of {len(cells)} runs, {failed} failed and {todo} are not finished."
    if untuned := comparison.get("untuned"):
        yield f"Left out until its tuning is finished: {'; '.join(untuned)}."
    samples = min(row["seeds"] * row.get("draws", 1) for row in rows if row["model"] != "base")
    if samples < FEW_SEEDS:
        yield f"A variant has {samples} run{'s' * (samples != 1)}: little is known of its spread."
