"""Runs before a judge: their answers, its verdicts, kept as they come, and the standings."""

import hashlib
import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsdr.data.clients import load_clients
from fedsdr.errors import UserError, choose
from fedsdr.files import disk_errors_named
from fedsdr.progress import Progress
from fedsdr.research.diagnose.measurements import sample_rows
from fedsdr.research.judge.verdicts import ballots_of, question_of, standings, verdict_of
from fedsdr.runs.answers import Answers, answers_of
from fedsdr.runs.run_folder import check_data, read_run
from fedsdr.runs.served_models import Kind
from fedsdr.types import ClientData, Decoding, Example, Generate, GenerationRequest

JUDGED: dict[str, Kind] = {"global": "global", "client": "client"}  # by what --of names
# Verdicts are short; what else there may be room for is a model that thinks aloud first.
DECODING = Decoding(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=1024)


def judge(
    runs: Sequence[Path],
    ask: Generate,
    out: Path,
    progress: Progress,
    *,
    judged_by: str,
    model: str = "global",
    base: bool = False,
    rows: int = 20,
    seed: int = 0,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Judge `model` (global or client) of the runs, and with `base` the first one's base model.

    `ask` is the judge `judged_by`. At most `rows` test rows of a client, a seeded choice. Every
    reply is appended to OUT/verdicts.jsonl, and what is there is not asked again. UserError for
    runs whose test rows differ, and when no reply could be read.
    """
    contestants = _contestants(runs, choose(model, JUDGED, "--of"), base)
    clients = {run: _clients(run, overrides) for run in runs}
    first = clients[runs[0]]
    for run in runs:
        tests = [{c.client_id: c.test for c in of} for of in (first, clients[run])]
        if tests[0] != tests[1]:
            raise UserError(
                f"{run}: its test rows are not those of {runs[0]}; judge runs of the same data "
                "(and data.seed, data.test_fraction, data.max_test_examples)"
            )
    chosen = {
        c.client_id: [c.test[i] for i in sample_rows(seed, c.client_id, len(c.test), rows)]
        for c in first
        if c.test
    }
    if not chosen:
        raise UserError(f"{runs[0]}: no test rows to judge (data.test_fraction)")
    answers = {
        name: answers_of(run, of, clients[run], chosen, progress, overrides)
        for name, (run, of) in contestants.items()
    }
    votes = _votes(chosen, answers, ask, out / "verdicts.jsonl", progress, judged_by, seed)
    found = standings(votes, list(contestants))
    if found["unreadable"] == found["asked"]:
        raise UserError(
            f"{judged_by}: none of its {found['asked']} replies is the JSON that was asked for "
            f"(they are in {out / 'verdicts.jsonl'}); name another --model"
        )
    about = {"judge": judged_by, "model": model, "seed": seed, "rows a client at most": rows}
    return about | {"clients": {c: len(of) for c, of in chosen.items()}, **found}


def _contestants(runs: Sequence[Path], model: Kind, base: bool) -> dict[str, tuple[Path, Kind]]:
    """Name -> run and model: the name of its folder, or its whole path where two share one."""
    names = [run.resolve().name for run in runs]
    found = {
        name if names.count(name) == 1 and name != "base" else str(run): (run, model)
        for name, run in zip(names, runs, strict=True)
    }
    if len(found) < len(runs):
        raise UserError("RUN: the same run is named twice")
    if base:
        found["base"] = (runs[0], "base")
    if not 2 <= len(found) <= len(string.ascii_uppercase):
        raise UserError(
            f"RUN: {len(found)} models to judge; name 2 to {len(string.ascii_uppercase)} runs, "
            "or one with --base"
        )
    return found


def _clients(run: Path, overrides: Sequence[str]) -> list[ClientData]:
    config, _ = read_run(run, overrides)
    clients = load_clients(config.data)
    check_data(run, clients)
    return clients


def _votes(
    rows: Mapping[str, Sequence[Example]],
    answers: Mapping[str, Answers],
    ask: Generate,
    path: Path,
    progress: Progress,
    judged_by: str,
    seed: int,
) -> list[Any]:
    """Return every ballot with its verdict; None where the reply is none."""
    by_id = {(client, row.id): row for client, of in rows.items() for row in of}
    ballots, requests = {}, {}
    for ballot in ballots_of(rows, list(answers), seed):
        texts = [answers[name][ballot.client][ballot.row] for name in ballot.order]
        turns = question_of(ballot, by_id[ballot.client, ballot.row], texts)
        asked = repr((judged_by, turns, DECODING, ballot))
        key = hashlib.sha256(asked.encode()).hexdigest()
        ballots[key], requests[key] = ballot, GenerationRequest(key, turns)
    replies = _replies(path)
    left = [request for key, request in requests.items() if key not in replies]
    if len(left) < len(requests):
        progress.log(f"{len(requests) - len(left)} verdicts of {len(requests)} are there already")
    torn = path.exists() and not path.read_bytes().endswith(b"\n")  # its last line, by a kill
    with disk_errors_named(path), progress.bar("asking the judge", len(left)) as advance:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write("\n" if torn else "")
            for reply in ask(left, DECODING):
                ballot = ballots[reply.id]
                line = {"key": reply.id, "client": ballot.client, "row": ballot.row,
                        "order": ballot.order, "reply": reply.text}  # fmt: skip
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()
                replies[reply.id] = reply.text
                advance(1)
    return [(ballot, verdict_of(replies[key], ballot)) for key, ballot in ballots.items()]


def _replies(path: Path) -> dict[str, str]:
    """The replies of before; a line that a kill has torn is left out."""
    if not path.exists():
        return {}
    found = {}
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            entry = json.loads(line)
            found[entry["key"]] = entry["reply"]
        except (ValueError, LookupError, TypeError):
            continue
    return found
