"""The models measured between rounds, and the round that served them best.

FOLDER/best/best.json           {round, loss, of}, for the reader: rounds.jsonl decides
FOLDER/best/checkpoint/         the state after that round
FOLDER/best/clients/CLIENT/     the S of each client after it
"""

import dataclasses
import functools
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from fedsdr.errors import UserError
from fedsdr.evaluation.results import build_results
from fedsdr.federation.checkpoint import save_state
from fedsdr.federation.round_records import best_round, read_records
from fedsdr.files import (
    MANIFEST,
    SEAL,
    make_private,
    numbered_folders,
    write_atomically,
    write_folder,
)
from fedsdr.progress import Progress
from fedsdr.runs.client_runtime import ClientRuntime, forward_of
from fedsdr.runs.evaluation import measure_models
from fedsdr.runs.run_folder import BEST, run_name
from fedsdr.runs.seed_drift import retention_of
from fedsdr.runs.served_models import Kind, Serving, serving_of
from fedsdr.types import ClientData, ServerState

Measures = dict[str, Any]  # `evaluation` of a line of rounds.jsonl
UNTIL = "until the round ends"
MeasureRound = Callable[[ServerState], Measures | None]


def round_measures(
    runtime: ClientRuntime, clients: Sequence[ClientData], rounds: int, progress: Progress
) -> MeasureRound:
    """Return what measures the state after a round, if `evaluation.every` asks for it.

    On the validation rows of the clients, or their test rows where there are none. With
    `evaluation.keep = "best"`, the state is kept in FOLDER/best if its own models have the lowest
    loss so far.
    """
    evaluation = dataclasses.replace(runtime.config.evaluation, transfer=False)
    config = dataclasses.replace(runtime.config, evaluation=evaluation)
    runtime = dataclasses.replace(runtime, config=config)
    which = "validation" if any(client.validation for client in clients) else "test"
    rows = [client.validation if which == "validation" else client.test for client in clients]
    held_out = [dataclasses.replace(c, test=of) for c, of in zip(clients, rows, strict=True) if of]
    best: tuple[int, float] | None = None  # round and loss

    def measure(state: ServerState) -> Measures | None:
        asked = evaluation.every and (state.round % evaluation.every == 0 or state.round == rounds)
        if not (asked and held_out):
            return None
        place = f"round {state.round} of {rounds}"
        within = f"{progress.within}, {place}" if progress.within else place
        now = dataclasses.replace(progress, after=None, within=within)
        of_round = _everything if evaluation.by_round == "all" else _losses
        found: Measures = {"of": which, "rows": sum(len(c.test) for c in held_out)}
        found |= of_round(runtime, held_out, state, now)
        if evaluation.keep == "best":
            nonlocal best
            if best is None and state.round > 1:  # resumed
                best = best_round(read_records(runtime.folder))
            loss = found["mean"]["client"]["loss"]
            if best is None or loss < best[1]:
                best = state.round, loss
                _keep(runtime, state, loss, which)
        return found

    return measure


def _losses(
    runtime: ClientRuntime, clients: Sequence[ClientData], state: ServerState, progress: Progress
) -> Measures:
    """Return the losses of the global and of the own models: by client, and their means."""
    kinds: tuple[Kind, ...] = ("global", "client")
    by_client: dict[str, dict[str, float]] = {client.client_id: {} for client in clients}
    with progress.bar("losses of models", 2 * len(clients), 0.0, UNTIL) as advance:
        for kind in kinds:
            for client in clients:
                of, name = by_client[client.client_id], client.client_id
                serving = serving_of(runtime, state, kind, name)
                if kind == "client" and serving.values is state.shared:  # no model of its own
                    of[kind] = of["global"]
                else:
                    of[kind] = _loss(runtime, client, serving)
                if not math.isfinite(of[kind]):
                    raise UserError(
                        f"client '{name}': the loss of its {kind} model after round {state.round} "
                        "is not finite; run again with a lower train.lr"
                    )
                advance(1)
    mean = {kind: {"loss": fmean(of[kind] for of in by_client.values())} for kind in kinds}
    return {"mean": mean, "losses": by_client}


def _loss(runtime: ClientRuntime, client: ClientData, serving: Serving) -> float:
    """Return the loss of a model on a client's test rows, in nats per token."""
    runtime.model.set(serving.values)
    mixed_by = client if serving.mixed else None
    with forward_of(runtime, serving.branches, mixed_by) as (losses, _):
        found = losses(client.test)
    return math.fsum(of for of, _ in found) / sum(tokens for _, tokens in found)


def _everything(
    runtime: ClientRuntime, clients: Sequence[ClientData], state: ServerState, progress: Progress
) -> Measures:
    """Return what results.json has of the means over clients, the losses by client, retention."""
    measured = measure_models(runtime, clients, state, progress, until=UNTIL)
    results = build_results(
        method=runtime.method.name,
        algorithm=runtime.config.algorithm.name,
        seed=runtime.config.seed,
        rounds=state.round,
        clients=measured,
        cost={},
    )
    losses = {
        name: {kind: client["models"][kind]["loss"] for kind in ("global", "client")}
        for name, client in results["clients"].items()
    }
    found = {"mean": results["mean"], "losses": losses}
    if runtime.config.evaluation.retention:
        retained = retention_of(runtime, clients, state, progress, UNTIL)
        found["retention"] = retained["models"]
    return found


def _keep(runtime: ClientRuntime, state: ServerState, loss: float, which: str) -> None:
    """Copy the state, whose loss is the lowest so far, and every client's S into FOLDER/best.

    A run that was killed here measures the same round again, and copies the same.
    """
    best = runtime.folder / BEST
    for client, last in state.accepted.items():
        source = runtime.store(client).round_folder(last)
        if not source.is_dir():  # the client keeps nothing
            continue
        folder = make_private(best / "clients" / client)
        write = functools.partial(_copy, source)
        write_folder(folder / source.name, write, private=True, manifest=True)
    save_state(best / "checkpoint", state, run=run_name(runtime.folder))
    for client, last in state.accepted.items():
        for number, older in numbered_folders(best / "clients" / client, "round-").items():
            if number != last:
                shutil.rmtree(older)
    text = json.dumps({"round": state.round, "loss": loss, "of": which}, indent=2)
    write_atomically(best / "best.json", text + "\n")


def _copy(source: Path, to: Path) -> None:
    for file in source.iterdir():
        if file.name not in (MANIFEST, SEAL):
            shutil.copyfile(file, to / file.name)
