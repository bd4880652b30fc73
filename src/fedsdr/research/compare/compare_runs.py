"""Run the cells of a comparison and write one table of all.

OUT/cells/NAME/          one run folder per cell; a finished one is never run again
OUT/compare.md           the table; compare.csv has the same rows, unrounded
OUT/compare_clients.csv  loss and score by client
OUT/compare.json         all of it, and what became of each cell
"""

import csv
import io
import json
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from fedsdr.config import key_names, nested, value_of, with_values
from fedsdr.data.clients import load_clients
from fedsdr.errors import BusyError, UserError
from fedsdr.evaluation.results import to_markdown
from fedsdr.files import write_atomically
from fedsdr.progress import Progress
from fedsdr.research.compare.comparison_table import notes_of, table_of
from fedsdr.research.compare.differences import Group, client_rows, comparison_rows
from fedsdr.research.compare.grid import Cell, is_path, unread_sweeps
from fedsdr.research.suites.tables import saved_suites
from fedsdr.runs.run import run_experiment
from fedsdr.runs.run_folder import (
    check_data,
    checked_config,
    load_run_config,
    save_run_config,
)
from fedsdr.runs.shared_base import one_base

Results = dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """Why a cell has no result; `fault`: a bug, not something the user can fix."""

    reason: str
    fault: bool


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
    for number, (name, cell) in enumerate(distinct.items(), start=1):
        folder = cell.folder_in(out)
        progress.log(f"cell {number} of {len(distinct)}: {cell}, in {folder}")
        try:
            resume = (folder / "config.toml").exists()
            results = finished(cell, out) or run_experiment(
                cell.config, folder, progress, resume=resume, open_runtime=open_once
            )
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
    """Return the results of a finished cell; None if a round or a measurement is missing.

    A cell whose answers had another length limit is not finished: running it measures it again. The
    paths in the config.toml of a moved cell are updated. UserError if its folder holds another run.
    """
    folder = cell.folder_in(out)
    if not ((folder / "config.toml").exists() and (folder / "data.json").exists()):
        return None
    _update_paths(cell, folder)
    checked_config(cell.config, folder, resume=True)
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # not measured, or not by us
        return None
    wanted = {
        "rounds": cell.config.federation.rounds,
        "max_new_tokens": cell.config.evaluation.max_new_tokens,
    }
    alike = isinstance(results, dict) and wanted.items() <= results.items()
    return results if alike and {"clients", "cost"} <= results.keys() else None


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
    settings, left_out = _suite_settings(suites)
    groups: dict[Group, dict[int, Results]] = {cell.group: {} for cell in cells}
    for cell in measured:
        asked = {name: s for name, s in suites[cell.name].items() if name in settings}
        groups[cell.group][cell.config.seed] = {**done[cell.name], "suites": asked}
    rewriting = [run["cost"]["seconds"].get("rewrite", 0.0) for run in done.values()]
    return {
        "baseline": baseline,
        "keys": [key for key, _ in cells[0].group.point],
        "rows": comparison_rows(groups, baseline),
        "by_client": client_rows(groups),
        "suite_settings": settings,
        "suites_left_out": left_out,
        "unread": unread_sweeps(cells),
        "untested": _clients_without_test_rows(measured, done, out),
        "rewriting_seconds": sum(rewriting),
        "cells": [
            {
                "folder": f"cells/{cell.folder_in(out).name}",
                "variant": cell.group.variant,
                "algorithm": cell.group.algorithm,
                "point": dict(cell.group.point),
                "seed": cell.config.seed,
                "finished": cell.name in done,
                "failed": failed[cell.name].reason if cell.name in failed else None,
            }
            for cell in cells
        ],
    }


def write_comparison(comparison: Mapping[str, Any], out: Path) -> None:
    """Write compare.md, compare.json and the .csv files into `out`."""
    title, rows = table_of(comparison)
    notes = "".join(f"- {note}\n" for note in notes_of(comparison))
    write_atomically(out / "compare.md", f"## {title}\n\n{to_markdown(rows)}\n{notes}")
    for name, key in (("compare.csv", "rows"), ("compare_clients.csv", "by_client")):
        text = io.StringIO()
        writer = csv.DictWriter(text, list(comparison[key][0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(comparison[key])
        write_atomically(out / name, text.getvalue())
    (out / "compare_suites.csv").unlink(missing_ok=True)  # older versions wrote suites apart
    write_atomically(out / "compare.json", json.dumps(comparison, indent=2) + "\n")


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


def _suite_settings(
    suites: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, str], dict[str, str]]:
    """Return how each suite was asked in all cells, and the suites asked in different ways."""
    alike, unlike = {}, {}
    for name in sorted({name for of_cell in suites.values() for name in of_cell}):
        ways: dict[str, str] = {}  # questions, shots and how -> the first cell asked that way
        for cell, of_cell in suites.items():
            if suite := of_cell.get(name):
                questions = f"{suite['num_questions']} questions"
                ways.setdefault(
                    repr((suite["ids"], suite["shots"], suite["how"])), f"{cell}: {questions}"
                )
                alike[name] = f"{suite['shots']}-shot, {questions}"
        if len(ways) > 1:
            unlike[name] = ", ".join(ways.values())
            del alike[name]
    return alike, unlike


def _clients_without_test_rows(
    cells: Iterable[Cell], done: Mapping[str, Results], out: Path
) -> list[str]:
    found: set[str] = set()
    for cell in cells:
        clients = json.loads((cell.folder_in(out) / "data.json").read_text(encoding="utf-8"))
        found |= clients.keys() - done[cell.name]["clients"].keys()
    return sorted(found)
