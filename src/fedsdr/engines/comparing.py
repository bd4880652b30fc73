"""Methods x algorithms x sweep points x seeds: every cell is one run, and one table is of all.

OUT/cells/NAME/    one run folder a cell; NAME has a hash of the configuration, so that a cell is
                   found again whatever else is compared, and two that are the same run once
OUT/compare.md     the table; compare.csv and compare.json hold the same rows, unrounded
"""

import csv
import gc
import io
import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedsdr.config import Config
from fedsdr.engines.cells import Cell
from fedsdr.engines.experiment import run_experiment
from fedsdr.engines.progress import Progress
from fedsdr.engines.run_folder import checked_config
from fedsdr.engines.site import Site, open_site, site_of, with_pack
from fedsdr.errors import UserError
from fedsdr.evaluation.comparison import Group, client_rows, comparison_rows, suite_rows
from fedsdr.evaluation.reference import Reference, paper_note, tables_in
from fedsdr.evaluation.results import to_markdown
from fedsdr.evaluation.suites.tables import saved_suites
from fedsdr.files import write_atomically
from fedsdr.models.load import choose_device, choose_dtype
from fedsdr.models.memory import choose_pack


@dataclass(frozen=True)
class Failure:
    """Why a cell has no result; `fault` is not for the user to mend."""

    reason: str
    fault: bool


def run_cells(
    cells: Sequence[Cell], out: Path, progress: Progress
) -> tuple[dict[str, dict[str, Any]], dict[str, Failure]]:
    """Run what is not finished and return the results, and the failures, by the name of the cell.

    A stopped cell goes on. One that fails leaves the others; it is tried again the next time.
    """
    done: dict[str, dict[str, Any]] = {}
    failed: dict[str, Failure] = {}
    open_once = one_base()
    distinct = {cell.name: cell for cell in cells}
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
            fault = not isinstance(error, UserError)
            if fault:
                progress.log(traceback.format_exc())
            text = " ".join(str(error).split())
            failed[name] = Failure(f"{type(error).__name__}: {text}" if fault else text, fault)
            progress.log(f"  failed: {failed[name].reason}")
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
    _check_same_data(cells, done, out)
    groups: dict[Group, dict[int, dict[str, Any]]] = {}
    suites: dict[Group, dict[int, dict[str, Any]]] = {}
    for cell in cells:
        runs = groups.setdefault(cell.group, {})
        asked = suites.setdefault(cell.group, {})
        if cell.name in done:
            runs[cell.config.seed] = done[cell.name]
            asked[cell.config.seed] = saved_suites(out / "cells" / cell.name)
    try:
        found = suite_rows(suites, baseline)
    except ValueError:
        raise UserError(
            f"{out / 'cells'}: a suite was not asked with the same questions in all runs; ask them "
            "again: fedsdr evaluate RUN --suite NAME --limit N"
        ) from None
    config = cells[0].config
    rewriting = [r["cost"]["seconds"].get("rewrite, this run", 0.0) for r in done.values()]
    return {
        "baseline": baseline,
        "keys": [key for key, _ in cells[0].group.point],
        "rows": comparison_rows(groups, baseline),
        "by_client": client_rows(groups),
        "suites": found,
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


def notes_of(comparison: Mapping[str, Any]) -> list[str]:
    """Return what must be known to read the table, and the cells that failed."""
    notes = [
        "loss: nats a supervised token of the raw answers; loss and score: mean over clients, "
        "then over seeds (standard deviation over seeds).",
        f"difference: to '{comparison['baseline']}' with the same algorithm, sweep point, seeds "
        "and kind of model [95 % paired bootstrap interval over test rows, drawn within each "
        "client, these seeds being given] (its standard deviation over seeds).",
        "cost: a run, mean over seeds. Rewrites are made once and shared by all cells: they took "
        f"{comparison['rewriting_seconds']:,.0f} s in all.",
    ]
    if comparison["paper"] is not None:
        data = comparison["data"]
        data = ", ".join(data) if isinstance(data, list) else data
        notes.append(paper_note(comparison["paper"], comparison["model"], data))
    failed = {cell["folder"]: cell["failed"] for cell in comparison["cells"] if cell["failed"]}
    todo = [c for c in comparison["cells"] if not (c.get("finished", True) or c["failed"])]
    notes += [f"not finished: {cell['folder']}" for cell in todo]
    return notes + [f"failed: {folder}: {reason}" for folder, reason in failed.items()]


def write_comparison(comparison: Mapping[str, Any], out: Path) -> None:
    """Write compare.md, compare.csv and compare.json into `out`."""
    rows = comparison["rows"]
    tables = tables_in(comparison)
    parts = [f"## {title}\n\n{to_markdown(table)}\n" for title, table in tables.items()]
    notes = [f"- {note}\n" for note in notes_of(comparison)]
    write_atomically(out / "compare.md", "".join([*parts, *notes]))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(out / "compare.csv", text.getvalue())
    write_atomically(out / "compare.json", json.dumps(comparison, indent=2) + "\n")


def finished(cell: Cell, out: Path) -> dict[str, Any] | None:
    """Return the results of a cell that is done, None where a round or a measure is missing.

    UserError when its folder holds another run.
    """
    folder = out / "cells" / cell.name
    if not (folder / "config.toml").exists():
        return None
    checked_config(cell.config, folder, resume=True)
    path = folder / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return results if results.get("rounds") == cell.config.federation.rounds else None


def finished_cells(cells: Sequence[Cell], out: Path) -> dict[str, dict[str, Any]]:
    """Return the results of the cells that are done, by name."""
    found = {cell.name: finished(cell, out) for cell in cells}
    return {name: results for name, results in found.items() if results is not None}


def one_base() -> Callable[[Config, Path], Site]:
    """Return an `open_site` that loads a base only where the last one does not serve again, and
    chooses an automatic pack size once for all runs of one shape."""
    held: list[Site] = []
    packs: dict[str, int] = {}

    def model(of: Config) -> tuple[object, ...]:
        dtype = choose_dtype(of.model.dtype, choose_device(of.model.device))
        loaded = replace(of.model, dtype=dtype, template="auto")  # which is not of the base
        lora = of.lora
        return loaded, lora.rank, lora.alpha, lora.target_modules, of.train.checkpointing

    def open_(config: Config, folder: Path) -> Site:
        wanted = model(config)
        reused = bool(held) and model(held[0].config) == wanted
        if not reused:
            held.clear()  # before the next one is loaded: two may not fit in memory
            gc.collect()  # modules refer to each other in circles
        if not config.train.pack_tokens:
            shape = repr((wanted, config.data.max_length, config.lora.dropout))
            if shape not in packs:
                packs[shape] = choose_pack(config, loaded=reused)[0]
            config = with_pack(config, packs[shape])
        if reused:
            return replace(
                site_of(config, folder, held[0].base, held[0].model),
                base_scores=held[0].base_scores,
            )
        held.append(open_site(config, folder))
        return held[0]

    return open_


def _check_same_data(cells: Sequence[Cell], done: Mapping[str, object], out: Path) -> None:
    """UserError when files of data changed between the cells, which then measure other rows."""
    first: dict[str, tuple[str, str]] = {}
    for cell in cells:
        if cell.name in done:
            digests = (out / "cells" / cell.name / "data.json").read_text(encoding="utf-8")
            other, before = first.setdefault(repr(cell.config.data), (cell.name, digests))
            if digests != before:
                raise UserError(
                    f"{out / 'cells'}: the data changed between {other} and {cell.name}; put them "
                    "back and remove the folder of the later one, or choose another --out"
                )
