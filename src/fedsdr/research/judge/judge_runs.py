"""Have a judge compare the answers of several runs, each reply kept as it arrives."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from fedsdr.data.clients import load_clients
from fedsdr.distill.cache import GenerationFile
from fedsdr.errors import UserError, choose
from fedsdr.progress import Progress
from fedsdr.research.diagnose.measurements import sample_rows
from fedsdr.research.judge import verdicts
from fedsdr.runs.answers import Answers, answers_of
from fedsdr.runs.run_folder import check_data, read_run
from fedsdr.runs.served_models import Kind
from fedsdr.types import ClientData, Decoding, Example, Generate, GenerationRequest, Turn

JUDGED: dict[str, Kind] = {"global": "global", "client": "client"}  # choices of --of
# A verdict is short; the rest of the limit is for models that think aloud first.
DECODING = Decoding(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=1024)


def check_endpoint(ask: Generate) -> None:
    """Send one short request, so that an endpoint that is down fails before the slow part."""
    list(ask([GenerationRequest("check", (Turn("user", "Say OK."),))], DECODING))


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
    """Return the content of judge.json: the runs' models, compared by the judge `ask`.

    `model` is "global" or "client"; `base` adds the base model of the first run; `rows` bounds the
    test rows of a client, drawn by `seed`. Replies are kept in OUT/verdicts.jsonl and never
    requested again. UserError if the runs' test rows differ or no reply is readable.
    """
    models = _models(runs, choose(model, JUDGED, "--of"), base)
    clients = {run: _clients(run, overrides) for run in runs}
    tests = {run: {c.client_id: c.test for c in of_run} for run, of_run in clients.items()}
    for run in runs:
        if tests[run] != tests[runs[0]]:
            raise UserError(
                f"{run}: its test rows are not those of {runs[0]}; judge runs of the same data "
                "(and data.seed, data.test_fraction, data.max_test_examples)"
            )
    chosen = {
        client: [test[i] for i in sample_rows(seed, client, len(test), rows)]
        for client, test in tests[runs[0]].items()
        if test
    }
    if not chosen:
        raise UserError(f"{runs[0]}: no test rows to judge (data.test_fraction)")
    answers = {
        name: answers_of(run, kind, clients[run], chosen, progress, overrides)
        for name, (run, kind) in models.items()
    }
    votes = _votes(chosen, answers, ask, out / "verdicts.jsonl", progress, judged_by, seed)
    found = verdicts.standings(votes, list(models))
    if found["unreadable"] == found["asked"]:
        raise UserError(
            f"{judged_by}: none of its {found['asked']} replies is the requested JSON "
            f"(see {out / 'verdicts.jsonl'}); name another --model"
        )
    about = {"judge": judged_by, "model": model, "seed": seed, "rows a client at most": rows}
    return about | {"clients": {c: len(of) for c, of in chosen.items()}, **found}


def _models(runs: Sequence[Path], kind: Kind, base: bool) -> dict[str, tuple[Path, Kind]]:
    """Return name -> (run, kind). The name is the folder's, or its path if two folders share it."""
    names = [run.resolve().name for run in runs]
    found = {
        name if names.count(name) == 1 and name != "base" else str(run): (run, kind)
        for name, run in zip(names, runs, strict=True)
    }
    if len(found) < len(runs):
        raise UserError("RUN: the same run is named twice")
    if base:
        found["base"] = (runs[0], "base")
    if len(found) < 2:
        raise UserError("RUN: only one model to judge; name at least two runs, or one with --base")
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
) -> list[tuple[verdicts.Ballot, verdicts.Verdict | None]]:
    """Return every ballot with its verdict, None if the reply is unreadable."""
    by_id = {(client, row.id): row for client, of in rows.items() for row in of}
    kept, ballots, requests = GenerationFile(path), {}, {}
    for ballot in verdicts.ballots_of(rows, list(answers), seed):
        texts = [answers[name][ballot.client][ballot.row] for name in ballot.order]
        turns = verdicts.question_of(ballot, by_id[ballot.client, ballot.row], texts)
        digest = sha256(repr((judged_by, turns, DECODING)).encode()).hexdigest()[:16]
        key = "/".join((ballot.client, ballot.row, *ballot.order, digest))
        ballots[key], requests[key] = ballot, GenerationRequest(key, turns)
    left = [request for key, request in requests.items() if kept.get(key) is None]
    if len(left) < len(requests):
        progress.log(f"{len(requests) - len(left)} of {len(requests)} verdicts are kept already")
    with progress.bar("asking the judge", len(left)) as advance:
        for reply in ask(left, DECODING):
            kept.put(reply.id, reply)
            advance(1)
    replies = {key: kept.get(key) for key in ballots}
    return [(ballots[k], verdicts.verdict_of(r.text, ballots[k])) for k, r in replies.items() if r]
