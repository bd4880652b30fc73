"""Methods x algorithms x sweep points x seeds: every cell is one run, and one table is of all.

OUT/cells/NAME/    one run folder a cell; NAME has a hash of the configuration, so that a cell is
                   found again whatever else is compared, and two that are the same run once
OUT/compare.md     the tables; compare.json holds the same rows, unrounded, and so do compare.csv,
                   compare_clients.csv and, with public suites, compare_suites.csv
"""

import csv
import io
import json
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from fedsdr.data.clients import load_clients
from fedsdr.errors import BusyError, UserError
from fedsdr.evaluation.results import to_markdown
from fedsdr.files import write_atomically
from fedsdr.progress import Progress
from fedsdr.research.compare.differences import Group, client_rows, comparison_rows, suite_rows
from fedsdr.research.compare.grid import Cell, unread_sweeps
from fedsdr.research.compare.reference import Reference
from fedsdr.research.compare.tables import notes_of, tables_in
from fedsdr.research.suites.tables import saved_suites
from fedsdr.runs.run import run_experiment
from fedsdr.runs.run_folder import check_data, checked_config
from fedsdr.runs.shared_base import one_base

CSV_FILES = {
    "compare.csv": "rows",
    "compare_clients.csv": "by_client",
    "compare_suites.csv": "suites",
}


@dataclass(frozen=True)
class Failure:
    """Why a cell has no result; `fault` is not for the user to mend."""

    reason: str
    fault: bool


def run_cells(
    cells: Sequence[Cell], out: Path, progress: Progress
) -> tuple[dict[str, dict[str, Any]], dict[str, Failure]]:
    """Run what is not finished and return the results, and the failures, by the name of the cell.

    A stopped cell goes on. One that fails leaves the others; it is tried again the next time. One
    where another process works is looked at again in the end. UserError, before anything is run,
    when data have changed since the cells that are there.
    """
    done: dict[str, dict[str, Any]] = {}
    failed: dict[str, Failure] = {}
    open_once = one_base()
    distinct = {cell.name: cell for cell in cells}
    _check_data_of_now(distinct.values(), out)
    busy = []
    for number, (name, cell) in enumerate(distinct.items(), start=1):
        folder = out / "cells" / name
        progress.log(f"cell {number} of {len(distinct)}: {cell}, in {folder}")
        try:
            resume = (folder / "config.toml").exists()
            done[name] = finished(cell, out) or run_experiment(
                cell.config, folder, progress, resume=resume, open_site=open_once
            )
            if not done[name]["clients"]:
                del done[name]
                raise UserError("no test rows, so nothing was measured (data.test_fraction)")
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
        if results := finished(cell, out):
            done[cell.name] = results
            del failed[cell.name]
    return done, failed


def comparison_of(
    cells: Sequence[Cell],
    done: Mapping[str, dict[str, Any]],
    failed: Mapping[str, Failure],
    baseline: str,
    out: Path,
    reference: Reference | None = None,
) -> dict[str, Any]:
    """Return what compare.json holds: the rows, what became of each cell, and the paper's rows."""
    _check_unchanged(cells, done, out)
    groups: dict[Group, dict[int, dict[str, Any]]] = {}
    suites: dict[Group, dict[int, dict[str, Any]]] = {}
    asked = {name: saved_suites(out / "cells" / name) for name in done}
    unlike = _asked_otherwise(asked)
    for cell in cells:
        runs = groups.setdefault(cell.group, {})
        answered = suites.setdefault(cell.group, {})
        if cell.name in done:
            runs[cell.config.seed] = done[cell.name]
            own = asked[cell.name]
            answered[cell.config.seed] = {s: own[s] for s in own if s not in unlike}
    config = cells[0].config
    rewriting = [r["cost"]["seconds"].get("rewrite, this run", 0.0) for r in done.values()]
    return {
        "baseline": baseline,
        "keys": [key for key, _ in cells[0].group.point],
        "rows": comparison_rows(groups, baseline),
        "by_client": client_rows(groups),
        "suites": suite_rows(suites, baseline),
        "suites_left_out": unlike,
        "unread": unread_sweeps(cells),
        "untested": _untested(done, out),
        "rewriting_seconds": sum(rewriting),
        "model": config.model.name,
        "data": config.data.clients or config.data.source,
        "paper": None if reference is None else asdict(reference),
        "cells": [
            {
                "folder": f"cells/{cell.name}",
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
    """Write compare.md, compare.json and the .csv files into `out`; one that has no rows now, which
    an earlier comparison left there, is removed."""
    tables = tables_in(comparison)
    parts = [f"## {title}\n\n{to_markdown(table)}\n" for title, table in tables.items()]
    notes = [f"- {note}\n" for note in notes_of(comparison)]
    write_atomically(out / "compare.md", "".join([*parts, *notes]))
    for name, key in CSV_FILES.items():
        if rows := comparison[key]:
            text = io.StringIO()
            writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            write_atomically(out / name, text.getvalue())
        else:
            (out / name).unlink(missing_ok=True)
    write_atomically(out / "compare.json", json.dumps(comparison, indent=2) + "\n")


def finished(cell: Cell, out: Path) -> dict[str, Any] | None:
    """Return the results of a cell that is done, None where a round or a measure is missing, or
    was measured otherwise: to run it measures again what its checkpoint holds.

    UserError when its folder holds another run.
    """
    folder = out / "cells" / cell.name
    if not ((folder / "config.toml").exists() and (folder / "data.json").exists()):
        return None
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


def finished_cells(cells: Sequence[Cell], out: Path) -> dict[str, dict[str, Any]]:
    """Return the results of the cells that are done, by name."""
    found = {cell.name: finished(cell, out) for cell in cells}
    return {name: results for name, results in found.items() if results is not None}


def _check_data_of_now(cells: Iterable[Cell], out: Path) -> None:
    """UserError when a cell that was begun has other rows than its data have now."""
    checked = set()
    for cell in cells:
        folder = out / "cells" / cell.name
        path = folder / "data.json"
        if path.exists():
            held = repr(cell.config.data), path.read_bytes()
            if held not in checked:  # most cells have the same rows: they are read once
                check_data(folder, load_clients(cell.config.data))
                checked.add(held)


def _check_unchanged(cells: Sequence[Cell], done: Mapping[str, object], out: Path) -> None:
    """UserError when cells of the same data have other rows, or other rewrites of the same teacher:
    files have changed between them."""
    seen: dict[str, tuple[str, str]] = {}
    for cell in cells:
        if cell.name not in done:
            continue
        folder, config = out / "cells" / cell.name, cell.config
        of = {
            "data": repr(config.data),
            "rewrites": repr((config.data, config.model, config.teacher)),
        }
        files = {
            "data": [folder / "data.json"],
            "rewrites": sorted(folder.glob("distilled/*.jsonl")),
        }
        for what, paths in files.items():
            if not paths:
                continue
            digest = sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
            other, before = seen.setdefault(f"{what} {of[what]}", (cell.name, digest))
            if digest != before:
                raise UserError(
                    f"{out / 'cells'}: the {what} changed between {other} and {cell.name}; put "
                    "their files back and remove the folder of the later one, or choose another "
                    "--out"
                )


def _asked_otherwise(asked: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return suite -> how each cell was asked, of the suites that were not asked alike in all."""
    unlike = {}
    for suite in sorted({suite for of in asked.values() for suite in of}):
        ways: dict[str, list[str]] = {}
        for name, of in asked.items():
            if suite in of:
                one = of[suite]
                ways.setdefault(repr((one["ids"], one["shots"], one["how"])), []).append(name)
        if len(ways) > 1:
            firsts = [
                (names[0], asked[names[0]][suite]["num_questions"]) for names in ways.values()
            ]
            unlike[suite] = ", ".join(f"{name}: {count} questions" for name, count in firsts)
    return unlike


def _untested(done: Mapping[str, Mapping[str, Any]], out: Path) -> list[str]:
    """Return the clients that have trained and have no test rows in any of the cells."""
    found: set[str] = set()
    for name, results in done.items():
        path = out / "cells" / name / "data.json"
        found |= json.loads(path.read_text(encoding="utf-8")).keys() - results["clients"].keys()
    return sorted(found)
