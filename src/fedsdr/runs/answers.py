"""What the models of a run answer to its test rows, as texts. They stay in the client's folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedsdr.evaluation.held_out import greedy, requests_for
from fedsdr.files import json_lines, write_atomically
from fedsdr.progress import Progress
from fedsdr.runs.client_runtime import Site, forward_of
from fedsdr.runs.run_folder import open_run, read_run
from fedsdr.runs.served_models import Kind, serving_of
from fedsdr.types import ClientData, Example, ServerState

Answers = dict[str, dict[str, str]]  # client -> row id -> the answer


def answers_of(
    run: Path,
    model: Kind,
    clients: Sequence[ClientData],
    rows: Mapping[str, Sequence[Example]],
    progress: Progress,
    overrides: Sequence[str] = (),
) -> Answers:
    """Return the greedy answers to these rows that `fedsdr evaluate` scores, of this kind of model.

    They are kept in RUN/answers/MODEL/CLIENT.jsonl with what they depend on, so that none is made
    twice.
    """
    config, state = read_run(run, overrides)
    about = {
        client: {
            "round": state.round,
            "accepted": state.accepted.get(client, 0),
            "max_new_tokens": config.evaluation.max_new_tokens,
        }
        for client in rows
    }
    found = {client: _kept(_path(run, model, client), about[client]) for client in rows}
    missing = {
        client: wanted
        for client, examples in rows.items()
        if (wanted := [row for row in examples if row.id not in found[client]])
    }
    if missing:
        site, state = open_run(run, overrides)
        count = sum(len(wanted) for wanted in missing.values())
        with progress.bar(f"answers of {run} ({model})", count) as advance:
            for client in clients:
                name = client.client_id
                if name not in missing:
                    continue
                found[name] |= _generate(site, state, client, model, missing[name])
                lines = (
                    json.dumps({"id": row, "answer": text, **about[name]}, ensure_ascii=False)
                    + "\n"
                    for row, text in found[name].items()
                )
                write_atomically(_path(run, model, name), "".join(lines))
                advance(len(missing[name]))
    return {c: {row.id: found[c][row.id] for row in examples} for c, examples in rows.items()}


def _path(run: Path, model: str, client: str) -> Path:
    return run / "answers" / model / f"{client}.jsonl"


def _kept(path: Path, about: Mapping[str, int]) -> dict[str, str]:
    """The answers that were made before by the same model in the same way."""
    if not path.exists():
        return {}
    return {e["id"]: e["answer"] for e in json_lines(path) if about.items() <= e.items()}


def _generate(
    site: Site, state: ServerState, client: ClientData, model: Kind, rows: Sequence[Example]
) -> dict[str, str]:
    serving = serving_of(site, state, model, client.client_id)
    site.model.set(serving.values)
    requests = requests_for([(row.id, row) for row in rows], site.config.seed)
    decoding = greedy(site.config.evaluation.max_new_tokens)
    with forward_of(site, serving.branches, client if serving.mixed else None) as (_, generate):
        return {made.id: made.text for made in generate(requests, decoding)}
