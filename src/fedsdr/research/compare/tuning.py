"""Equal tuning: each variant's best values of one grid, on a draw that no result is taken from."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsdr.config import CompareConfig, Config
from fedsdr.errors import UserError
from fedsdr.evaluation.results import Table
from fedsdr.research.compare.differences import COSTS, Group, mean_over_clients
from fedsdr.research.compare.grid import Cell, cells_of, groups_of, points_of, root_of, with_keys
from fedsdr.research.compare.model_values import Results, values_of

# group -> point of the grid, as (key, value) pairs -> its cell
Trials = Mapping[Group, Mapping[tuple[tuple[str, Any], ...], Cell]]

_EPOCHS = "decides what equal compute is, so all variants have the same; use --sweep"
_NOT_TUNED = {
    "data.seed": "is the draw; use compare.draws",
    "train.local_epochs": _EPOCHS,
    "train.smooth_epochs": _EPOCHS,
}


def tuning_cells(
    config: Config, study: CompareConfig, folder: Path, out: Path | None = None
) -> Trials:
    """Return, for each group, a cell for every point of `study.tune`.

    They run on data.seed + draws, the draw after the last one that counts, and measure the
    loss of the served models alone. UserError for an unknown key, an empty list, and a key on which
    the results would depend in another way: the draw, and what makes compute equal.
    """
    for key in dict(points_of(config, study.tune, folder)[0]):
        if key in _NOT_TUNED:
            raise UserError(f"tune {key}: {_NOT_TUNED[key]}")
    root, found = root_of(folder, out), {}
    for group, own in groups_of(config, study, folder).items():
        cells = {}
        for point in points_of(config, study.tune, folder):
            tried = with_keys(own, dict(point), folder)
            values = _unread(tried) | {"data.seed": own.data.seed + study.draws}
            tried = with_keys(tried, values, folder)
            shown = Group(f"tuning {group.variant}", group.algorithm, group.point + point)
            cells[point] = Cell(shown, tried, root)
        found[group] = cells
    return found


def _unread(config: Config) -> dict[str, Any]:
    """Return the keys that turn off what tuning does not read: it reads the served loss alone."""
    found: dict[str, Any] = {"evaluation.retention": False, "evaluation.transfer": False}
    return found if config.evaluation.keep == "best" else found | {"evaluation.every": 0}


def planned_cells(config: Config, study: CompareConfig, folder: Path, out: Path) -> list[Cell]:
    """Return the cells of tuning and those that count, the latter with each grid's first values."""
    if not study.tune:
        return cells_of(config, study, folder, out)
    trials = tuning_cells(config, study, folder, out)
    first = {group: dict(next(iter(points))) for group, points in trials.items()}
    tried = [cell for points in trials.values() for cell in points.values()]
    return tried + cells_of(config, study, folder, out, first)


def tuning_rows(trials: Trials, done: Mapping[str, Results], model: str) -> list[dict[str, Any]]:
    """Return one row per group and point that is done: the loss of `model`, cost, and the pick.

    A group's pick has the lowest loss, the first of equal ones; it has none until all are done.
    """
    rows = []
    for group, points in trials.items():
        tried = [
            group.place
            | {
                "values": dict(point),
                "loss": mean_over_clients(values_of(done[cell.name], model, "loss")),
                "train_tokens": COSTS["train_tokens"](done[cell.name]["cost"]),
                "picked": False,
            }
            for point, cell in points.items()
            if cell.name in done
        ]
        if len(tried) == len(points):
            best = min(tried, key=lambda r: r["loss"] if math.isfinite(r["loss"]) else math.inf)
            best["picked"] = True
        rows += tried
    return rows


def picked_values(trials: Trials, rows: Sequence[Mapping[str, Any]]) -> dict[Group, dict[str, Any]]:
    """Return the values that were picked for each group of which all cells are done."""
    return {
        group: row["values"]
        for group in trials
        for row in rows
        if row["picked"] and all(row[key] == value for key, value in group.place.items())
    }


def tuning_table(rows: Sequence[Mapping[str, Any]], model: str) -> Table:
    """Return what was tried for each variant, and what was picked."""
    keys = [key for key in rows[0] if key not in ("values", "loss", "train_tokens", "picked")]
    body = [
        [
            *(str(row[key]) for key in keys),
            ", ".join(f"{key} = {value}" for key, value in row["values"].items()),
            f"{row['loss']:.3f}",
            "picked" if row["picked"] else "",
            f"{row['train_tokens']:,.0f}",
        ]
        for row in rows
    ]
    title = f"Tuning by the loss of the {model} model, on a draw that the results leave out"
    return title, [[*keys, "values", "loss", "", "train tokens"], *body]
