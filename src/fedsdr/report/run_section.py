"""The report's sections of run folders: what came out, losses, cost, rewriting, and no text.

Nothing raw and no rewrite is read, so a client's operator may pass the page on.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedsdr.config import Config, key_names, load_config, value_of
from fedsdr.distill.records import lost_audit, read_audit
from fedsdr.evaluation.model_tables import tables_of
from fedsdr.evaluation.results import Table
from fedsdr.evaluation.results_file import RESULTS, measured_results, read_results
from fedsdr.federation.checkpoint import check_run
from fedsdr.federation.round_records import RECORDS, read_records
from fedsdr.file_reading import stands
from fedsdr.report import run_charts as charts_of
from fedsdr.report.charts import MOST_LABELS
from fedsdr.report.findings import Records, findings, warnings
from fedsdr.report.page import Group, Section
from fedsdr.saved_config import note_of, read_saved

HINT = "a report needs a run or a comparison (fedsdr run, fedsdr compare)"
SECRET_KEYS = ("teacher.url",)  # may hold a password


def run_section(folder: Path, more: Sequence[Group] = ()) -> Section:
    """Return the section of a run, finished or not; the groups `more` follow its own.

    UserError if the folder holds no run, or a file of it is broken.
    """
    results, records = read_run(folder)
    audit = read_audit(folder / "distilled")
    if not audit and results and "rewrite" in results["cost"]["tokens"]:
        raise lost_audit(folder / "distilled")
    config = load_config(folder / "config.toml")
    groups = _result_groups(results) if results and results["clients"] else []
    if records:
        groups.insert(
            1, Group("Training", charts_of.training_charts(records), [_round_table(records)])
        )
    if audit:
        charts = charts_of.rewriting_charts(audit)
        groups.append(Group("Rewriting", charts, [rewriting_table(audit)]))
    if results:
        cost = results["cost"]
        groups.append(Group("Cost", [charts_of.cost_chart(cost)], [_cost_table(cost)]))
    return Section(
        title=folder.resolve().name,
        groups=[*groups, *more],
        findings=findings(results) if results else [_unfinished(folder, config, records)],
        warnings=warnings(results, records, audit),
        facts=_facts(folder, config, records),
        settings=_settings(folder),
    )


def read_run(folder: Path) -> tuple[dict[str, Any] | None, Records]:
    """Return results.json, None where the run is not finished, and the lines of rounds.jsonl."""
    check_run(folder)
    if not stands(folder / "config.toml"):
        return read_results(folder, HINT), read_records(folder)
    before_round_1 = not (stands(folder / RECORDS) or stands(folder / RESULTS))
    records = [] if before_round_1 else read_records(folder)
    asked = load_config(folder / "config.toml").federation.rounds
    return measured_results(folder, len(records), asked), records


def side_by_side(folders: Sequence[Path]) -> Section:
    """Return a section with one row per run, the curves of their mean losses and their gains."""
    models = ("base", "global", "client")
    rows = [["run", "method", "algorithm", "seed", "rounds", *models, "MB up"]]
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = list(map(str, folders))
    runs = {name: read_run(folder) for name, folder in zip(names, folders, strict=True)}
    for folder, (name, (results, records)) in zip(folders, runs.items(), strict=True):
        config = load_config(folder / "config.toml")
        mean = (results or {}).get("mean", {})
        facts = [config.method.name, config.algorithm.name, str(config.seed), str(len(records))]
        if results:
            facts = [str(results[key]) for key in ("method", "algorithm", "seed", "rounds")]
        losses = [f"{mean[m]['loss']:.3f}" if mean else "" for m in models]
        sent = sum(record["bytes_up"] for record in records)
        rows.append([name, *facts, *losses, f"{sent / 1e6:,.1f}"])
    title = "Loss on test rows, nats per token, mean over clients"
    group = Group("Runs", charts_of.several_runs(runs), [(title, rows)])
    return Section("Side by side", [group])


def _result_groups(results: Mapping[str, Any]) -> list[Group]:
    """Return the groups of what results.json measures."""
    homes: dict[str, list[Table]] = {"results": [], "transfer": [], "answers": []}
    words = {"Transfer": "transfer", "Loss of each model": "transfer"}
    words |= {"Answer audit": "answers", "Retention": "answers"}
    for title, rows in tables_of(results):
        if len(rows[0]) <= MOST_LABELS:  # a matrix of very many clients stays in results.json
            home = next((home for word, home in words.items() if title.startswith(word)), "results")
            homes[home].append((title, rows))
    groups = [
        Group("Scores and losses", charts_of.gain_charts(results), homes["results"]),
        Group("Transfer between clients", charts_of.transfer_charts(results), homes["transfer"]),
        Group("What the models say and forget", charts_of.answer_charts(results), homes["answers"]),
    ]
    return [group for group in groups if group.charts or group.tables]


def _unfinished(folder: Path, config: Config, records: Records) -> str:
    done, asked = len(records), config.federation.rounds
    go_on = f"go on with: fedsdr run {folder}/config.toml --out {folder} --resume"
    if done < asked:
        return f"Not finished: {done} of {asked} rounds are done; {go_on}."
    return f"Not finished: all {asked} rounds are done and nothing is measured yet; {go_on}."


def _facts(folder: Path, config: Config, records: Records) -> dict[str, str]:
    """Return what was run. The date is that of rounds.jsonl."""
    last = folder / RECORDS
    date = datetime.fromtimestamp(last.stat().st_mtime, UTC) if last.is_file() else None
    changed = [
        f"{key} = {'(not shown)' if key in SECRET_KEYS else value_of(config, key)!r}"
        for key in key_names()
        if value_of(config, key) != value_of(Config(), key)
    ]
    versions, rows = note_of(read_saved(folder / "config.toml")[0])
    facts = {
        "Repeat it": f"fedsdr run {folder.name}/config.toml --out NEW",
        "Last round (UTC)": f"{date:%Y-%m-%d %H:%M}" if date else "",
        "Model": f"{config.model.name} {config.model.revision}".strip(),
        "Versions": versions,
        "Device, dtype": f"{config.model.device}, {config.model.dtype}",
        "Method, algorithm": f"{config.method.name}, {config.algorithm.name}",
        "Rounds, seed": f"{len(records)} of {config.federation.rounds}, seed {config.seed}",
        "Data (SHA-256 of data.json)": rows,
        "Settings that differ from the defaults": "; ".join(changed),
    }
    return {name: value for name, value in facts.items() if value}


def _settings(folder: Path) -> str:
    """The configuration, without the address of an endpoint, which may hold a password."""
    text, _ = read_saved(folder / "config.toml")
    return re.sub(r'(?m)^(url = )"[^"\n].*$', r'\1"(not shown)"', text)


def _cost_table(cost: Mapping[str, Any]) -> Table:
    kinds = ("tokens", "seconds")
    body = [
        [name, *(f"{cost[kind][name]:,.0f}" if name in cost[kind] else "" for kind in kinds)]
        for name in dict.fromkeys([*cost["tokens"], *cost["seconds"]])
    ]
    sent = f"{cost['bytes_up'] / 1e6:,.1f} MB up, {cost['bytes_down'] / 1e6:,.1f} MB down"
    return f"Cost ({sent})", [["", *kinds], *body]


def _round_table(records: Records) -> Table:
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
