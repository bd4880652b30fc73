"""The answers of a run's models to its test rows, as text kept in the run folder."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from fedsdr.distill.cache import GenerationFile
from fedsdr.evaluation.held_out import greedy, requests_for
from fedsdr.progress import Progress
from fedsdr.runs.client_runtime import ClientRuntime, forward_of
from fedsdr.runs.run_folder import open_run, read_run
from fedsdr.runs.served_models import Kind, serving_of
from fedsdr.types import ClientData, Example, Generation, ServerState

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

    They are generated once and kept in RUN/answers/MODEL/CLIENT.jsonl.
    """
    config, state = read_run(run, overrides)
    found: Answers = {}
    runtime = cache(lambda: open_run(run, overrides)[0])  # loaded if an answer is missing
    with progress.bar(f"answers of {run} ({model})", sum(map(len, rows.values()))) as advance:
        for client in (c for c in clients if c.client_id in rows):
            name, examples = client.client_id, rows[client.client_id]
            kept = GenerationFile(run / "answers" / model / f"{name}.jsonl")
            trained = f"round {state.round}, client's round {state.accepted.get(name, 0)}"
            about = f"{trained}, at most {config.evaluation.max_new_tokens} tokens"
            keys = {row.id: f"{row.id} ({about})" for row in examples}
            if missing := [row for row in examples if kept.get(keys[row.id]) is None]:
                for answer in _generate(runtime(), state, client, model, missing):
                    kept.put(keys[answer.id], answer)
            found[name] = {row: made.text for row, key in keys.items() if (made := kept.get(key))}
            advance(len(examples))
    return found


def _generate(
    runtime: ClientRuntime,
    state: ServerState,
    client: ClientData,
    model: Kind,
    rows: Sequence[Example],
) -> Iterable[Generation]:
    serving = serving_of(runtime, state, model, client.client_id)
    runtime.model.set(serving.values)
    requests = requests_for([(row.id, row) for row in rows], runtime.config.seed)
    decoding = greedy(runtime.config.evaluation.max_new_tokens)
    with forward_of(runtime, serving.branches, client if serving.mixed else None) as (_, generate):
        yield from generate(requests, decoding)
