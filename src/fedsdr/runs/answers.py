"""The answers of a run's models to its test rows, as text kept in the run folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedsdr.evaluation.held_out import greedy, requests_for
from fedsdr.files import json_lines, write_atomically
from fedsdr.progress import Progress
from fedsdr.runs.client_runtime import ClientRuntime, forward_of
from fedsdr.runs.run_folder import open_run, read_run
from fedsdr.runs.served_models import Kind, serving_of
from fedsdr.types import ClientData, Example, ServerState

Answers = dict[str, dict[str, str]]  # client -> row id -> answer


def answers_of(
    run: Path,
    model: Kind,
    clients: Sequence[ClientData],
    rows: Mapping[str, Sequence[Example]],
    progress: Progress,
    overrides: Sequence[str] = (),
) -> Answers:
    """Return the greedy answers of a model to these rows, which `fedsdr evaluate` scores.

    They are kept in RUN/answers/MODEL/CLIENT.jsonl together with what they depend on, and are
    generated only once.
    """
    config, state = read_run(run, overrides)
    paths = {client: run / "answers" / model / f"{client}.jsonl" for client in rows}
    depends_on = {
        client: {
            "round": state.round,
            "accepted": state.accepted.get(client, 0),
            "max_new_tokens": config.evaluation.max_new_tokens,
        }
        for client in rows
    }
    found = {client: _kept(paths[client], depends_on[client]) for client in rows}
    missing = {
        client: wanted
        for client, examples in rows.items()
        if (wanted := [row for row in examples if row.id not in found[client]])
    }
    if missing:
        runtime, state = open_run(run, overrides)
        count = sum(len(wanted) for wanted in missing.values())
        with progress.bar(f"answers of {run} ({model})", count) as advance:
            for client in (c for c in clients if c.client_id in missing):
                name = client.client_id
                found[name] |= _generate(runtime, state, client, model, missing[name])
                lines = (
                    json.dumps({"id": row, "answer": text, **depends_on[name]}) + "\n"
                    for row, text in found[name].items()
                )
                write_atomically(paths[name], "".join(lines))
                advance(len(missing[name]))
    return {c: {row.id: found[c][row.id] for row in examples} for c, examples in rows.items()}


def _kept(path: Path, depends_on: Mapping[str, int]) -> dict[str, str]:
    """Return the answers in the file that the same model gave in the same way."""
    if not path.exists():
        return {}
    return {e["id"]: e["answer"] for e in json_lines(path) if depends_on.items() <= e.items()}


def _generate(
    runtime: ClientRuntime,
    state: ServerState,
    client: ClientData,
    model: Kind,
    rows: Sequence[Example],
) -> dict[str, str]:
    serving = serving_of(runtime, state, model, client.client_id)
    runtime.model.set(serving.values)
    requests = requests_for([(row.id, row) for row in rows], runtime.config.seed)
    decoding = greedy(runtime.config.evaluation.max_new_tokens)
    with forward_of(runtime, serving.branches, client if serving.mixed else None) as (_, generate):
        return {made.id: made.text for made in generate(requests, decoding)}
