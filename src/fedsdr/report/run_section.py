"""The report's sections of run folders: scores, losses, cost, rounds and rewriting, and no text.

Nothing raw and no rewrite is read, so a client's operator may pass the page on.
"""

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsdr.distill.records import lost_audit, read_audit
from fedsdr.evaluation.model_tables import tables_of
from fedsdr.evaluation.results import Table
from fedsdr.evaluation.results_file import Results
from fedsdr.federation.round_records import read_records
from fedsdr.file_reading import RESTORE, read_json, read_text
from fedsdr.report.curves import Curve, curves_svg
from fedsdr.report.page import Section

HINT = "a report needs a finished run or comparison (fedsdr run, fedsdr compare)"


def run_section(folder: Path, more_tables: Sequence[Table] = ()) -> Section:
    """Return the section of a finished run; `more_tables` follow its own.

    UserError if results.json is missing or broken.
    """
    results, records = read_json(folder / "results.json", Results, HINT), read_records(folder)
    tables: list[Table] = []
    if results["clients"]:
        tables += tables_of(results)
    tables += [_cost_table(results["cost"]), _round_table(records)]
    if audit := read_audit(folder / "distilled"):
        tables.append(rewriting_table(audit))
    elif "rewrite" in results["cost"]["tokens"]:
        raise lost_audit(folder)
    curves = {f"training, {phase}": of for phase, of in _training_losses(records).items()}
    curves |= _measured_losses(records)
    return Section(
        title=folder.resolve().name,
        tables=[*tables, *more_tables],
        lines=[
            f"{results['method']} with {results['algorithm']}, {results['rounds']} rounds, "
            f"seed {results['seed']}, {len(results['clients'])} clients."
        ],
        svg=curves_svg(curves, "loss, nats per token", bold="mean") if curves else "",
        settings=_settings(folder),
    )


def side_by_side(folders: Sequence[Path]) -> Section:
    """Return a section with one row per run and the curves of their mean training losses."""
    models = ("base", "global", "client")
    rows = [["run", "method", "algorithm", "seed", "rounds", *models, "MB up"]]
    curves: dict[str, Curve] = {}
    for folder in folders:
        name, results = folder.resolve().name, read_json(folder / "results.json", Results, HINT)
        mean = results.get("mean", {})
        facts = [str(results[key]) for key in ("method", "algorithm", "seed", "rounds")]
        losses = [f"{mean[m]['loss']:.3f}" if mean else "" for m in models]
        rows.append([name, *facts, *losses, f"{results['cost']['bytes_up'] / 1e6:,.1f}"])
        for phase, panel in _training_losses(read_records(folder)).items():
            curves[f"{name}, {phase}"] = panel["mean"]
    svg = curves_svg({"mean over clients": curves}, "training loss, nats per token")
    title = "Loss on test rows, nats per token, mean over clients"
    return Section("Side by side", [(title, rows)], svg=svg if curves else "")


def _settings(folder: Path) -> str:
    """The configuration, without the address of an endpoint, which may hold a password."""
    text = read_text(folder / "config.toml", RESTORE)
    return re.sub(r'(?m)^(url = )"[^"\n].*$', r'\1"(not shown)"', text)


def _training_losses(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Curve]]:
    """Return phase -> client (and "mean" over clients) -> its training loss by round."""
    panels: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for record in records:
        by_phase: dict[str, list[float]] = {}
        for client in record["clients"]:
            for key, value in client.items():
                phase, _, what = key.rpartition(".")
                if what == "loss":
                    curve = panels.setdefault(phase, {}).setdefault(client["id"], [])
                    curve.append((record["round"], value))
                    by_phase.setdefault(phase, []).append(value)
        for phase, values in by_phase.items():
            mean = panels[phase].setdefault("mean", [])
            mean.append((record["round"], statistics.fmean(values)))
    return {phase: dict(curves) for phase, curves in panels.items()}


def _measured_losses(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Curve]]:
    """Return the losses of global and own models between rounds, by client and their mean."""
    panels: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for record in records:
        found = record.get("evaluation") or {"losses": {}}
        for kind in ("global", "client") if found["losses"] else ():
            losses = {client: of[kind] for client, of in found["losses"].items()}
            losses["mean"] = statistics.fmean(losses.values())
            curves = panels.setdefault(f"{found['of']} rows, {kind} model", {})
            for name, loss in losses.items():
                curves.setdefault(name, []).append((record["round"], loss))
    return {panel: dict(curves) for panel, curves in panels.items()}


def _cost_table(cost: Mapping[str, Any]) -> Table:
    kinds = ("tokens", "seconds")
    body = [
        [name, *(f"{cost[kind][name]:,.0f}" if name in cost[kind] else "" for kind in kinds)]
        for name in dict.fromkeys([*cost["tokens"], *cost["seconds"]])
    ]
    return "Cost", [["", *kinds], *body]


def _round_table(records: Sequence[Mapping[str, Any]]) -> Table:
    header = ["round", "updates", "refused", "step norm", "cosine of updates"]
    body = [
        [str(r["round"]), str(len(r["clients"])), str(len(r["refused"])), f"{r['step_norm']:.3f}"]
        + ["" if r.get("update_cosine") is None else f"{r['update_cosine']:.3f}"]
        + [f"{r[way] / 1e6:,.2f}" for way in ("bytes_up", "bytes_down")]
        + [f"{r['seconds']:,.0f}"]
        for r in records
    ]
    return "Rounds", [[*header, "MB up", "MB down", "seconds"], *body]


def rewriting_table(audit: Mapping[str, Any]) -> Table:
    """Return how many answers of each client were rewritten, and why others were not."""
    rows = [["client", "answers", "rewritten", "length", "new tokens", "kept raw because"]]
    for name, client in audit["clients"].items():
        why = ", ".join(f"{reason} {n}" for reason, n in sorted(client["kept_raw"].items()))
        numbers = [str(client["answers"]), str(client["rewritten"])]
        numbers += [f"x{client['length_ratio']:.2f}", f"{client['all_new_tokens']:,}"]
        rows.append([name, *numbers, why])
    return "Rewriting", rows
