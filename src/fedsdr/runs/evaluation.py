"""Measure base, global and client models, and what the run has cost."""

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, astuple
from functools import partial
from typing import Any

from fedsdr.config import PrivacyConfig
from fedsdr.evaluation.answer_audit import VERSION
from fedsdr.evaluation.held_out import ClientScores, Infer, scores_of
from fedsdr.evaluation.results import ClientResult, build_results
from fedsdr.evaluation.transfer import transfer_of
from fedsdr.federation.round_records import read_records
from fedsdr.progress import Advance, Progress, no_advance
from fedsdr.runs.base_cache import kept_of_base
from fedsdr.runs.client_runtime import ClientRuntime, evaluate_model
from fedsdr.runs.clients_at_once import client_groups, evaluate_group
from fedsdr.runs.refresh import rewriting_audits
from fedsdr.runs.rounds import rounds_done
from fedsdr.runs.seed_drift import retention_of
from fedsdr.runs.served_models import serving_of
from fedsdr.seeds import seed_for
from fedsdr.types import ClientData, ServerState

Records = Sequence[Mapping[str, Any]]  # the lines of rounds.jsonl


def evaluate_clients(
    runtime: ClientRuntime,
    clients: Sequence[ClientData],
    state: ServerState,
    progress: Progress,
    infer: Infer | None = None,
) -> dict[str, Any]:
    """Measure the base, global and client models on every client's test rows.

    `infer` tells the relation of gold answers to the models'. Without test rows
    (data.test_fraction = 0) only the cost is returned.
    """
    began = time.perf_counter()
    config = runtime.config
    tested = [client for client in clients if client.test]
    measured = measure_models(runtime, tested, state, progress, infer)
    left_out = {name: of for name, of in measured.items() if name in config.data.leave_out}
    trained = {name: of for name, of in measured.items() if name not in left_out}
    retained = {}
    if config.evaluation.retention and trained:
        kept = [client for client in tested if client.client_id in trained]
        retained = retention_of(runtime, kept, state, progress)
    records = read_records(runtime.folder)
    facts: dict[str, Any] = {
        "method": runtime.method.name,
        "algorithm": config.algorithm.name,
        "seed": config.seed,
        "rounds": rounds_done(runtime.folder, state),
        "cost": cost_of(runtime, records, measured, time.perf_counter() - began),
    }
    results = build_results(**facts, clients=trained) if trained else facts | {"clients": {}}
    if left_out:
        of_others = build_results(**facts, clients=left_out)
        results["took_no_part"] = {key: of_others[key] for key in ("clients", "examples")}
    if config.evaluation.keep == "best":
        results["served_round"] = state.round
    results["max_new_tokens"] = config.evaluation.max_new_tokens  # of an answer that is scored
    results |= {"retention": retained} if retained else {}
    results |= _transfer_of(measured, config.seed, left_out) | _left_out(records)
    return results | _privacy_of(config.privacy, records)


def measure_models(
    runtime: ClientRuntime,
    tested: Sequence[ClientData],
    state: ServerState,
    progress: Progress,
    infer: Infer | None = None,
    until: str = "left",
) -> dict[str, ClientResult]:
    """Return the scores of base, global and own model of each client on its test rows.

    With evaluation.transfer, those of the own models on the rows of all clients too. `until` says
    what follows, for the time left.
    """
    rows, done = sum(len(client.test) for client in tested), 0
    total = rows * (2 + (len(tested) if runtime.config.evaluation.transfer else 1))
    with progress.bar("evaluating, answers", total, 0.0, until) as show:

        def advance(answers: int, tokens: int = 0, /) -> None:
            nonlocal done
            done += answers
            show(answers, tokens)

        evaluate = partial(evaluate_model, runtime, infer=infer, advance=advance)
        base = evaluate(tested, ()) if infer else base_scores(runtime, tested, advance)
        advance(rows - done)  # those that were kept, or are not made
        serving = serving_of(runtime, state, "global")
        runtime.model.set(serving.values)
        shared = evaluate(tested, serving.branches) if serving.branches else base
        advance(2 * rows - done)
        by_owner = _own_scores(runtime, tested, state, advance, infer)
        advance(total - done)
    measured = {}
    for client in tested:
        name = client.client_id
        own = by_owner.get(name, shared)
        models = {"base": base[name], "global": shared[name], "client": own[name]}
        elsewhere = own if own is not shared and len(own) > 1 else {}
        measured[name] = ClientResult(len(client.raw), models, elsewhere)
    return measured


def _own_scores(
    runtime: ClientRuntime,
    tested: Sequence[ClientData],
    state: ServerState,
    advance: Advance,
    infer: Infer | None,
) -> dict[str, dict[str, ClientScores]]:
    """Return the scores of each client's own model, by the client whose rows they are on.

    Clients that are served by the global model are left out.
    """
    served = ((c, serving_of(runtime, state, "client", c.client_id)) for c in tested)
    own = (one for one in served if one[1].values is not state.shared)
    scores: dict[str, dict[str, ClientScores]] = {}
    for group in client_groups(runtime, own):
        if len(group) > 1:
            found = evaluate_group(runtime, group, infer, advance)
            scores |= {name: {name: of} for name, of in found.items()}
        else:
            ((client, serving),) = group
            on = tested if runtime.config.evaluation.transfer else [client]
            runtime.model.set(serving.values)
            scores[client.client_id] = evaluate_model(
                *(runtime, on, serving.branches),
                mixed_by=client if serving.mixed else None,
                infer=infer,
                advance=advance,
            )
    return scores


def _transfer_of(
    measured: Mapping[str, ClientResult], seed: int, absent: Collection[str]
) -> dict[str, Any]:
    """Return the transfer between the clients; empty if it was not measured."""
    own = {name: result.elsewhere for name, result in measured.items() if result.elsewhere}
    shared = {name: result.models["global"] for name, result in measured.items()}
    seed = seed_for(seed, "transfer")
    return {"transfer": transfer_of(shared, own, seed, absent)} if own else {}


def _left_out(records: Records) -> dict[str, Any]:
    """Return in how many rounds the aggregation left a client out; empty where it never did."""
    counts = Counter(entry["id"] for record in records for entry in record.get("left_out", ()))
    return {"left_out": dict(sorted(counts.items()))} if counts else {}


def _privacy_of(asked: PrivacyConfig, records: Records) -> dict[str, Any]:
    """Return the privacy settings and the epsilon spent; empty without differential privacy."""
    if asked.mode == "none":
        return {}
    spent = [record["epsilon"] for record in records]
    epsilon = max(value for value in spent if value is not None)
    return {"privacy": {**asdict(asked), "epsilon": epsilon, "neighbours": "one client replaced"}}


def base_scores(
    runtime: ClientRuntime, clients: Sequence[ClientData], advance: Advance = no_advance
) -> dict[str, ClientScores]:
    """Return the scores of the base, which are kept in the cache by all that they depend on."""
    evaluate = partial(evaluate_model, runtime, clients, (), advance=advance)
    asked = runtime.config.evaluation
    # Not the rows themselves: their repr leaves out the tool messages, which a template may read.
    rows = [
        (client.client_id, *([astuple(row) for row in of] for of in (client.raw, client.test)))
        for client in clients
    ]
    kept = kept_of_base(
        runtime,
        "base_scores",
        (VERSION, asked.max_new_tokens, asked.batch_size, rows),
        lambda: {name: asdict(scores) for name, scores in evaluate().items()},
    )
    return {client: scores_of(of) for client, of in kept.items()}


def cost_of(
    runtime: ClientRuntime,
    records: Records,
    measured: Mapping[str, ClientResult],
    evaluation_seconds: float,
) -> dict[str, Any]:
    """Return tokens, seconds by phase and bytes each way, from the files of the run.

    Training and bytes up count accepted updates; "forward" are tokens that the base or a teacher
    read without a backward pass. "rewrite" counts all rewrites, whenever they were made: how many
    came from the cache does not change the result.
    """
    trained = [client for record in records for client in record["clients"]]
    tokens: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for client in trained:
        for key, value in client.items():
            phase, _, what = key.rpartition(".")
            if what == "tokens":
                tokens[f"train {phase}"] = tokens.get(f"train {phase}", 0) + value
            elif what == "forward_tokens":
                tokens[f"forward {phase}"] = tokens.get(f"forward {phase}", 0) + value
            elif what == "seconds":
                seconds[f"train {phase}"] = seconds.get(f"train {phase}", 0.0) + value
    for of_client in rewriting_audits(runtime, records):
        tokens["rewrite"] = tokens.get("rewrite", 0) + of_client["all_new_tokens"]
        seconds["rewrite"] = seconds.get("rewrite", 0.0) + of_client.get("seconds", 0.0)
    # A model is measured once: the client model of plain is its global one.
    distinct = {
        id(scores): scores
        for client in measured.values()
        for scores in (*client.models.values(), *client.elsewhere.values())
    }
    tokens["evaluate"] = sum(row.new_tokens for scores in distinct.values() for row in scores.rows)
    seconds["evaluate"] = evaluation_seconds
    return {
        "tokens": tokens,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "bytes_down": sum(record["bytes_down"] for record in records),
        "bytes_up": sum(record["bytes_up"] for record in records),
    }
