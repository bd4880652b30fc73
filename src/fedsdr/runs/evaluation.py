"""Measure base, global and client models, and what the run has cost."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fedsdr.distill.records import read_audit
from fedsdr.evaluation.held_out import ClientScores, ExampleScore
from fedsdr.evaluation.results import ClientResult, build_results
from fedsdr.federation.round_records import read_records
from fedsdr.files import kept_json
from fedsdr.models.packing import device_of
from fedsdr.progress import Progress
from fedsdr.runs.client_runtime import ClientRuntime, evaluate_model
from fedsdr.runs.refresh import refresh_audits
from fedsdr.runs.served_models import serving_of
from fedsdr.types import ClientData, ServerState


def evaluate_clients(
    runtime: ClientRuntime, clients: Sequence[ClientData], state: ServerState, progress: Progress
) -> dict[str, Any]:
    """Measure the base, global and client models on every client's test rows.

    Without test rows (data.test_fraction = 0) only the cost is returned.
    """
    began = time.perf_counter()
    config = runtime.config
    measured: dict[str, ClientResult] = {}
    tested = [client for client in clients if client.test]
    with progress.bar("evaluating", 3 * len(tested)) as advance:
        base = base_scores(runtime, tested)
        advance(len(tested))
        serving = serving_of(runtime, state, "global")
        runtime.model.set(serving.values)
        shared = evaluate_model(runtime, tested, serving.branches) if serving.branches else base
        advance(len(tested))
        for client in tested:
            name = client.client_id
            own = _client_scores(runtime, client, state, shared[name])
            advance(1)
            models = {"base": base[name], "global": shared[name], "client": own}
            measured[name] = ClientResult(len(client.raw), models)
    facts: dict[str, Any] = {
        "method": runtime.method.name,
        "algorithm": config.algorithm.name,
        "seed": config.seed,
        "rounds": state.round,
        "cost": cost_of(runtime.folder, measured, time.perf_counter() - began),
    }
    results = build_results(**facts, clients=measured) if measured else {**facts, "clients": {}}
    results["max_new_tokens"] = config.evaluation.max_new_tokens  # of an answer that is scored
    return results | _left_out(runtime.folder) | _privacy_of(runtime)


def _left_out(folder: Path) -> dict[str, Any]:
    """Return in how many rounds the aggregation left a client out; empty where it never did."""
    records = read_records(folder)
    counts = Counter(entry["id"] for record in records for entry in record.get("left_out", ()))
    return {"left_out": dict(sorted(counts.items()))} if counts else {}


def _privacy_of(runtime: ClientRuntime) -> dict[str, Any]:
    """Return the privacy settings and the epsilon spent; empty without differential privacy."""
    asked = runtime.config.privacy
    if asked.mode == "none":
        return {}
    spent = [record["epsilon"] for record in read_records(runtime.folder)]
    epsilon = max(value for value in spent if value is not None)
    return {"privacy": {**asdict(asked), "epsilon": epsilon, "neighbours": "one client replaced"}}


def base_scores(runtime: ClientRuntime, clients: Sequence[ClientData]) -> dict[str, ClientScores]:
    """Return the scores of the base, which are kept in the cache by all that they depend on."""
    config = runtime.config
    device = device_of(runtime.base.model)
    about = (
        *(version("fedsdr"), torch.__version__, torch.backends.cpu.get_cpu_capability()),
        *(device.type, torch.get_num_threads()),
        *(runtime.base.fingerprint, config.model.dtype, config.model.quantize),
        *(runtime.renderer.fingerprint, config.data.max_length, config.train.pack_tokens),
        *(config.evaluation, [(c.client_id, c.raw, c.test) for c in clients]),
    )
    name = sha256(repr(about).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    kept = kept_json(
        runtime.cache / "base_scores" / f"{name}.json",
        lambda: {n: asdict(s) for n, s in evaluate_model(runtime, clients, ()).items()},
        private=True,
    )
    return {
        client: ClientScores(of["metric"], tuple(ExampleScore(**row) for row in of["rows"]))
        for client, of in kept.items()
    }


def _client_scores(
    runtime: ClientRuntime, client: ClientData, state: ServerState, shared: ClientScores
) -> ClientScores:
    own = serving_of(runtime, state, "client", client.client_id)
    if own.values is state.shared:
        return shared
    runtime.model.set(own.values)
    mixed_by = client if own.mixed else None
    return evaluate_model(runtime, [client], own.branches, mixed_by=mixed_by)[client.client_id]


def cost_of(
    folder: Path, measured: Mapping[str, ClientResult], evaluation_seconds: float
) -> dict[str, Any]:
    """Return tokens, seconds by phase and bytes each way, from the files of the run.

    Training and bytes up count accepted updates; "forward" are tokens that the base or a teacher
    read without a backward pass. "rewrite" counts all rewrites, whenever they were
    made: how many came from the cache does not change the result.
    """
    records = read_records(folder)
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
    if audit := read_audit(folder / "distilled"):
        rewriting = audit["clients"].values()
        tokens["rewrite"] = sum(c["all_new_tokens"] for c in rewriting)
        seconds["rewrite"] = sum(c.get("seconds", 0.0) for c in rewriting)
    for anew in refresh_audits(folder):
        tokens["rewrite"] += anew["all_new_tokens"]
        seconds["rewrite"] += anew.get("seconds", 0.0)
    # A model is measured once: the client model of plain is its global one.
    distinct = {id(s): s for client in measured.values() for s in client.models.values()}
    tokens["evaluate"] = sum(row.new_tokens for scores in distinct.values() for row in scores.rows)
    seconds["evaluate"] = evaluation_seconds
    return {
        "tokens": tokens,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "bytes_down": sum(record["bytes_down"] for record in records),
        "bytes_up": sum(record["bytes_up"] for record in records),
    }
