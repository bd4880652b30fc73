"""Measure base, global and client models, and what the run has cost."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedsdr.evaluation.held_out import ClientScores
from fedsdr.evaluation.results import ClientResult, build_results
from fedsdr.files import json_lines
from fedsdr.progress import Progress
from fedsdr.runs.client_runtime import Site, evaluate_model
from fedsdr.runs.served_models import serving_of
from fedsdr.types import ClientData, ServerState


def evaluate_clients(
    site: Site, clients: Sequence[ClientData], state: ServerState, progress: Progress
) -> dict[str, Any]:
    """Measure base, global and client models, each on every client's test rows.

    Without any test row (data.test_fraction = 0) there is nothing but the cost.
    """
    began = time.perf_counter()
    config = site.config
    measured: dict[str, ClientResult] = {}
    tested = [client for client in clients if client.test]
    with progress.bar("evaluating", 3 * len(tested)) as advance:
        base = _base_scores(site, tested)
        advance(len(tested))
        serving = serving_of(site, state, "global")
        site.model.set(serving.values)
        shared = evaluate_model(site, tested, serving.branches) if serving.branches else base
        advance(len(tested))
        for client in tested:
            name = client.client_id
            own = _client_scores(site, client, state, shared[name])
            advance(1)
            models = {"base": base[name], "global": shared[name], "client": own}
            measured[name] = ClientResult(len(client.raw), models)
    facts: dict[str, Any] = {
        "method": site.method.name,
        "algorithm": config.algorithm.name,
        "seed": config.seed,
        "rounds": state.round,
        "cost": cost_of(site.folder, measured, time.perf_counter() - began),
    }
    results = build_results(**facts, clients=measured) if measured else {**facts, "clients": {}}
    results["max_new_tokens"] = config.evaluation.max_new_tokens  # of an answer that is scored
    return results | _privacy_of(site)


def _privacy_of(site: Site) -> dict[str, Any]:
    """Return what the run has spent of its privacy, nothing where none was asked for."""
    asked = site.config.privacy
    if asked.mode == "none":
        return {}
    spent = [record["epsilon"] for record in json_lines(site.folder / "rounds.jsonl")]
    epsilon = max(value for value in spent if value is not None)
    return {"privacy": {**asdict(asked), "epsilon": epsilon, "neighbours": "one client replaced"}}


def _base_scores(site: Site, clients: Sequence[ClientData]) -> dict[str, ClientScores]:
    config = site.config
    rows = tuple((c.client_id, c.raw, c.test) for c in clients)
    forward = site.renderer.name, config.data.max_length, config.train.pack_tokens
    key = rows, config.evaluation, *forward
    if key not in site.base_scores:
        site.base_scores[key] = evaluate_model(site, clients, ())
    return site.base_scores[key]


def _client_scores(
    site: Site, client: ClientData, state: ServerState, shared: ClientScores
) -> ClientScores:
    own = serving_of(site, state, "client", client.client_id)
    if own.values is state.shared:
        return shared
    site.model.set(own.values)
    mixed_by = client if own.mixed else None
    return evaluate_model(site, [client], own.branches, mixed_by=mixed_by)[client.client_id]


def cost_of(
    folder: Path, measured: Mapping[str, ClientResult], evaluation_seconds: float
) -> dict[str, Any]:
    """Return tokens, seconds by phase and bytes each way, from the files of the run.

    Of training and bytes up, what was counted: refused updates are not in it. "rewrite" is all
    tokens of the rewrites, whenever they were made; "this run" those that the cache lacked.
    """
    records = json_lines(folder / "rounds.jsonl")
    trained = [client for record in records for client in record["clients"]]
    tokens: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for client in trained:
        for key, value in client.items():
            phase, _, what = key.rpartition(".")
            if what == "tokens":
                tokens[f"train {phase}"] = tokens.get(f"train {phase}", 0) + value
            elif what == "seconds":
                seconds[f"train {phase}"] = seconds.get(f"train {phase}", 0.0) + value
    audit = folder / "distilled" / "audit.json"
    if audit.exists():
        rewriting = json.loads(audit.read_text())["clients"].values()
        tokens["rewrite"] = sum(c["all_new_tokens"] for c in rewriting)
        tokens["rewrite, this run"] = sum(c["new_tokens"] for c in rewriting)
        seconds["rewrite, this run"] = sum(c["seconds"] for c in rewriting)
    # Models that are the same were measured once: plain's client model is its global one.
    distinct = {id(s): s for client in measured.values() for s in client.models.values()}
    tokens["evaluate"] = sum(row.new_tokens for scores in distinct.values() for row in scores.rows)
    seconds["evaluate"] = evaluation_seconds
    return {
        "tokens": tokens,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "bytes_down": sum(record["bytes_down"] for record in records),
        "bytes_up": sum(record["bytes_up"] for record in records),
    }
