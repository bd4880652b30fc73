"""One self-contained HTML page of runs and comparisons: numbers and pictures, no text of anyone.

It asks nothing of the network, and holds no raw text and no rewrite: a site may hand it on.
"""

import base64
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from fedsdr.errors import UserError
from fedsdr.evaluation.results import rows_of
from fedsdr.files import json_lines
from fedsdr.report.curves import Curve, curves_svg
from fedsdr.research.compare.tables import notes_of, tables_in
from fedsdr.research.diagnose import summary

Table = tuple[str, list[list[str]]]  # caption; rows, the first of them the header
KINDS = ("tokens", "seconds")


@dataclass(frozen=True)
class Section:
    """What the page has of one run, one comparison, or all of them."""

    title: str
    tables: Sequence[Table]
    lines: Sequence[str] = ()
    svg: str = ""
    pictures: Sequence[tuple[str, str]] = ()  # name, PNG in base64
    settings: str = ""


def page_of(folders: Sequence[Path]) -> str:
    """Return the page; UserError for a folder that holds neither results nor a comparison."""
    runs = [folder for folder in folders if not (folder / "compare.json").is_file()]
    sections = [_run(folder) if folder in runs else _comparison(folder) for folder in folders]
    if len(runs) > 1:
        sections.insert(0, _side_by_side(runs))
    source = files("fedsdr.report").joinpath("page.html").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(source)
    return template.render(title=", ".join(map(_name, folders)), sections=sections)


def _run(folder: Path) -> Section:
    results, records = _read(folder / "results.json"), _records(folder)
    tables: list[Table] = []
    if results["clients"]:
        caption = "Score (± 95 % interval over test rows) and loss (nats a token) on test rows"
        tables.append((caption, rows_of(results)))
    tables += _cost(results, records)
    if (folder / "distilled" / "audit.json").is_file():
        tables.append(_audit(_read(folder / "distilled" / "audit.json")))
    if (folder / "diagnose.json").is_file():
        tables += summary.tables_of(_read(folder / "diagnose.json"))
    about = (
        f"{results['method']} with {results['algorithm']}, {results['rounds']} rounds, "
        f"seed {results['seed']}, {len(results['clients'])} clients."
    )
    curves = _losses(records)
    return Section(
        title=_name(folder),
        tables=tables,
        lines=[about],
        svg=curves_svg(curves, "training loss, nats a token", bold="mean") if curves else "",
        pictures=[
            (picture.stem, base64.b64encode(picture.read_bytes()).decode())
            for picture in sorted(folder.glob("*.png"))
        ],
        settings=_settings(folder),
    )


def _comparison(folder: Path) -> Section:
    found = _read(folder / "compare.json")
    return Section(_name(folder), list(tables_in(found).items()), notes_of(found))


def _side_by_side(folders: Sequence[Path]) -> Section:
    rows = [["run", "method", "algorithm", "seed", "rounds", "base", "global", "client", "MB up"]]
    curves: dict[str, Curve] = {}
    for folder in folders:
        results = _read(folder / "results.json")
        mean = results.get("mean", {})
        losses = [f"{mean[m]['loss']:.3f}" if mean else "" for m in ("base", "global", "client")]
        facts = [str(results[key]) for key in ("method", "algorithm", "seed", "rounds")]
        sent = f"{results['cost']['bytes_up'] / 1e6:,.1f}"
        rows.append([_name(folder), *facts, *losses, sent])
        for phase, panel in _losses(_records(folder)).items():
            curves[f"{_name(folder)}, {phase}"] = panel["mean"]
    caption = "Mean over clients of the loss in nats a token, on their test rows"
    svg = curves_svg({"mean over clients": curves}, "training loss, nats a token")
    return Section("Side by side", [(caption, rows)], svg=svg if curves else "")


def _settings(folder: Path) -> str:
    """The configuration, without the address of an endpoint, which may hold a password."""
    text = (folder / "config.toml").read_text(encoding="utf-8")
    return re.sub(r'(?m)^(url = )"[^"\n].*$', r'\1"(not shown)"', text)


def _name(folder: Path) -> str:
    return folder.resolve().name


def _losses(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Curve]]:
    """Return phase -> client, and "mean" over clients, -> training loss by round."""
    panels: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for record in records:
        told: dict[str, list[float]] = {}
        for client in record["clients"]:
            for key, value in client.items():
                phase, _, what = key.rpartition(".")
                if what == "loss":
                    curve = panels.setdefault(phase, {}).setdefault(client["id"], [])
                    curve.append((record["round"], value))
                    told.setdefault(phase, []).append(value)
        for phase, values in told.items():
            mean = panels[phase].setdefault("mean", [])
            mean.append((record["round"], statistics.fmean(values)))
    return {phase: dict(curves) for phase, curves in panels.items()}


def _cost(results: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[Table]:
    cost = results["cost"]
    names = dict.fromkeys([*cost["tokens"], *cost["seconds"]])
    body = [
        [name, *(f"{cost[kind][name]:,.0f}" if name in cost[kind] else "" for kind in KINDS)]
        for name in names
    ]
    counts = ["round", "updates", "refused", "step norm", "cosine of updates"]
    rounds = [[*counts, "MB up", "MB down", "seconds"]] + [
        [str(r["round"]), str(len(r["clients"])), str(len(r["refused"])), f"{r['step_norm']:.3f}"]
        + ["" if r.get("update_cosine") is None else f"{r['update_cosine']:.3f}"]
        + [f"{r[way] / 1e6:,.2f}" for way in ("bytes_up", "bytes_down")]
        + [f"{r['seconds']:,.0f}"]
        for r in records
    ]
    return [("Cost", [["", *KINDS], *body]), ("Rounds", rounds)]


def _audit(audit: Mapping[str, Any]) -> Table:
    rows = [["client", "answers", "rewritten", "length", "new tokens", "kept raw because"]]
    for name, client in audit["clients"].items():
        why = ", ".join(f"{reason} {n}" for reason, n in sorted(client["kept_raw"].items()))
        rows.append([name, str(client["answers"]), str(client["rewritten"])])
        rows[-1] += [f"x{client['length_ratio']:.2f}", f"{client['all_new_tokens']:,}", why]
    return "Rewriting", rows


def _records(folder: Path) -> list[dict[str, Any]]:
    path = folder / "rounds.jsonl"
    return json_lines(path) if path.exists() else []


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path}: missing; a report is of a finished run or comparison (fedsdr run, compare)"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: broken ({error})") from None
    return found
