"""Run the cells of a comparison and write one table of all.

OUT/cells/NAME/          one run folder per cell; a finished one is never run again
OUT/compare.md           the table; compare.csv has the same rows, unrounded
OUT/compare_clients.csv  loss and score by client
OUT/compare.json         all of it, and what became of each cell
"""

import csv
import io
import json
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

from fedsdr.config import CompareConfig, Config, key_names, nested, value_of, with_values
from fedsdr.data.clients import load_clients
from fedsdr.errors import BusyError, UserError
from fedsdr.evaluation.results import to_markdown
from fedsdr.federation.round_records import read_records
from fedsdr.files import write_atomically
from fedsdr.progress import Progress
from fedsdr.research.compare.comparison_table import notes_of, tables_of
from fedsdr.research.compare.differences import (
    Group,
    Sample,
    client_rows,
    comparison_rows,
    run_rows,
    shared_test_rows,
)
from fedsdr.research.compare.front import front_of
from fedsdr.research.compare.grid import Cell, cells_of, is_path
from fedsdr.research.compare.model_values import asked_alike
from fedsdr.research.compare.tuning import picked_values, tuning_cells, tuning_rows
from fedsdr.research.compare.variance import variance_rows
from fedsdr.research.suites.tables import saved_suites
from fedsdr.runs.run import run_experiment
from fedsdr.runs.run_folder import (
    check_data,
    checked_config,
    finished_results,
    load_run_config,
    save_run_config,
)
from fedsdr.runs.run_status import noted_in
from fedsdr.runs.shared_base import one_base

Results = dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """Why a cell has no result; `fault`: a bug, not something the user can fix."""

    reason: str
    fault: bool


def run_study(
    config: Config, study: CompareConfig, folder: Path, out: Path, progress: Progress, *, run: bool
) -> tuple[dict[str, Any] | None, dict[str, Failure]]:
    """Tune the variants if `study` says so, then run them all; return the comparison and failures.

    A variant whose tuning is not done is "untuned" and has no runs. The comparison is None if no
    run is finished. Without `run`, finished runs alone are read.
    """

    def results_of(cells: Sequence[Cell]) -> tuple[dict[str, Results], dict[str, Failure]]:
        if not run:
            return finished_cells(cells, out), {}
        if not cells:
            return {}, {}
        with noted_in(out, progress) as noted:
            return run_cells(cells, out, noted)

    trials = tuning_cells(config, study, folder, out) if study.tune else {}
    trial_cells = [cell for points in trials.values() for cell in points.values()]
    tried, failed = results_of(trial_cells)
    rows = tuning_rows(trials, tried, study.tune_model)
    tuned = picked_values(trials, rows) if study.tune else None
    cells = cells_of(config, study, folder, out, tuned)
    done, failed_later = results_of(cells)
    failed |= failed_later
    if not done:
        return None, failed
    comparison = comparison_of(cells, done, failed, study.baseline, out)
    return comparison | {
        "tuning": rows,
        "tune_model": study.tune_model,
        "tuning_cells": _entries(trial_cells, tried, failed, out),
        "untuned": [str(group) for group in trials if group not in (tuned or {})],
    }, failed


def run_cells(
    cells: Sequence[Cell], out: Path, progress: Progress
) -> tuple[dict[str, Results], dict[str, Failure]]:
    """Run the unfinished cells; return the results and the failures by cell name.

    A stopped cell is resumed. A failed one leaves the others and is tried again next time. A cell
    that another process is running is looked at again at the end. UserError, before anything runs,
    if data have changed since a cell was started.
    """
    done: dict[str, Results] = {}
    failed: dict[str, Failure] = {}
    open_once = one_base()
    distinct = {cell.name: cell for cell in cells}
    _check_current_data(distinct.values(), out)
    busy = []
    seconds: list[float] = []  # of each cell that ran
    for number, (name, cell) in enumerate(distinct.items(), start=1):
        folder = cell.folder_in(out)
        ahead = fmean(seconds) * (len(distinct) - number) if seconds else None
        began = time.monotonic()
        progress.log(f"cell {number} of {len(distinct)}: {cell}, in {folder}")
        try:
            resume = (folder / "config.toml").exists()
            results = finished(cell, out)
            if results is None:
                within = replace(progress, after=ahead, within=f"cell {number}/{len(distinct)}")
                results = run_experiment(
                    cell.config, folder, within, resume=resume, open_runtime=open_once
                )
                seconds.append(time.monotonic() - began)
            if not results["clients"]:
                raise UserError("no test rows, so nothing was measured (data.test_fraction)")
            done[name] = results
        except Exception as error:
            if isinstance(error, BusyError):
                busy.append(cell)
            fault = not isinstance(error, UserError)
            if fault:
                progress.log(traceback.format_exc())
            text = " ".join(str(error).split())
            failed[name] = Failure(f"{type(error).__name__}: {text}" if fault else text, fault)
            progress.log(f"  failed: {failed[name].reason}")
    for cell in busy:
        if found := finished(cell, out):
            done[cell.name] = found
            del failed[cell.name]
    return done, failed


def finished(cell: Cell, out: Path) -> Results | None:
    """Return the results of a finished cell, None if it has yet to run or be measured again.

    The paths in the config.toml of a moved cell are updated. UserError if its folder holds another
    run.
    """
    folder = cell.folder_in(out)
    if not ((folder / "config.toml").exists() and (folder / "data.json").exists()):
        return None
    _update_paths(cell, folder)
    return finished_results(checked_config(cell.config, folder, resume=True), folder)


def finished_cells(cells: Sequence[Cell], out: Path) -> dict[str, Results]:
    """Return the results of the finished cells by name."""
    found = {cell.name: finished(cell, out) for cell in cells}
    return {name: results for name, results in found.items() if results is not None}


def comparison_of(
    cells: Sequence[Cell],
    done: Mapping[str, Results],
    failed: Mapping[str, Failure],
    baseline: str,
    out: Path,
) -> dict[str, Any]:
    """Return the content of compare.json: the rows, and what became of each cell.

    UserError if data or rewrites changed between cells that should share them.
    """
    measured = [cell for cell in cells if cell.name in done]
    _check_unchanged(measured, out)
    suites = {cell.name: saved_suites(cell.folder_in(out)) for cell in measured}
    alike, unlike = asked_alike(list(suites.values()))
    groups: dict[Group, dict[Sample, Results]] = {cell.group: {} for cell in cells}
    records: dict[Group, dict[Sample, list[dict[str, Any]]]] = {cell.group: {} for cell in cells}
    for cell in measured:
        asked = {name: suites[cell.name][name] for name in alike}
        sample = cell.config.data.seed, cell.config.seed
        groups[cell.group][sample] = {**done[cell.name], "suites": asked}
        records[cell.group][sample] = read_records(cell.folder_in(out))
    return {
        "baseline": baseline,
        "keys": [key for key, _ in cells[0].group.point],
        "rows": comparison_rows(groups, baseline),
        "by_client": client_rows(groups),
        "runs": run_rows(groups),
        "variance": variance_rows(groups),
        "front": front_of(groups, records, baseline),
        "shared_test_rows": shared_test_rows(groups, pooled=bool(cells[0].config.data.source)),
        "suite_settings": alike,
        "suites_left_out": unlike,
        "rewriting_seconds": sum(r["cost"]["seconds"].get("rewrite", 0.0) for r in done.values()),
        "finished": len(done),
        "cells": _entries(cells, done, failed, out),
    }


def _entries(
    cells: Sequence[Cell], done: Mapping[str, Results], failed: Mapping[str, Failure], out: Path
) -> list[dict[str, Any]]:
    return [
        {
            "folder": f"cells/{cell.folder_in(out).name}",
            "variant": cell.group.variant,
            "algorithm": cell.group.algorithm,
            "point": dict(cell.group.point),
            "data_seed": cell.config.data.seed,
            "seed": cell.config.seed,
            "finished": cell.name in done,
            "failed": failed[cell.name].reason if cell.name in failed else None,
        }
        for cell in cells
    ]


def write_comparison(comparison: Mapping[str, Any], out: Path) -> None:
    """Write compare.md, compare.json and the .csv files into `out`."""
    tables = [f"## {title}\n\n{to_markdown(rows)}\n" for title, rows in tables_of(comparison)]
    notes = "".join(f"- {note}\n" for note in notes_of(comparison))
    texts = {  # all of them before the first file is replaced
        "compare.md": "\n".join(tables) + notes,
        "compare.csv": _csv(comparison["rows"]),
        "compare_clients.csv": _csv(comparison["by_client"]),
        "compare.json": json.dumps(comparison, indent=2) + "\n",
    }
    for name, text in texts.items():
        write_atomically(out / name, text)


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _update_paths(cell: Cell, folder: Path) -> None:
    """Write the current paths into the config.toml of a cell that was moved with its study."""
    saved = config = load_run_config(folder / "config.toml")
    for key in key_names():
        before, now = value_of(saved, key), value_of(cell.config, key)
        if before != now and is_path(before) and is_path(now):
            config = with_values(config, nested(key, now), str(folder), folder)
    if config != saved:
        save_run_config(config, folder / "config.toml")


def _check_current_data(cells: Iterable[Cell], out: Path) -> None:
    """UserError if the data of a cell that was started have other rows now."""
    checked = set()
    for cell in cells:
        folder = cell.folder_in(out)
        path = folder / "data.json"
        if path.exists():
            held = repr(cell.config.data), path.read_bytes()
            if held not in checked:  # most cells have the same rows: read them once
                check_data(folder, load_clients(cell.config.data))
                checked.add(held)


def _check_unchanged(cells: Sequence[Cell], out: Path) -> None:
    """UserError if cells with the same data have other rows, or other rewrites of one teacher."""
    seen: dict[tuple[str, ...], tuple[str, str]] = {}
    for cell in cells:
        folder, config = cell.folder_in(out), cell.config
        data, teacher = repr(config.data), repr((config.model, config.teacher))
        files = {
            ("data", data): [folder / "data.json"],
            ("rewrites", data, teacher): sorted(folder.glob("distilled/*.jsonl")),
        }
        for source, paths in files.items():
            if not paths:
                continue
            digest = sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
            other, before = seen.setdefault(source, (folder.name, digest))
            if digest != before:
                raise UserError(
                    f"{out / 'cells'}: the {source[0]} changed between {other} and {folder.name}; "
                    "restore the files and remove the later folder, or choose another --out"
                )
