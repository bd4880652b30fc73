"""What `fedsdr diagnose` measures with the model: gradients, loss transfer, serving, one round.

The run folder stays as it is: the extra round works on a copy of the clients' folders.
"""

import dataclasses
import math
import random
import shutil
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsdr.algorithms.low_rank import product_error
from fedsdr.federation.round import run_round
from fedsdr.federation.update_checks import decoded
from fedsdr.progress import Advance
from fedsdr.runs.client_runtime import ClientRuntime, forward_of, train_at
from fedsdr.runs.run_folder import BEST
from fedsdr.runs.run_plan import announced_by, client_settings, plan_of
from fedsdr.seeds import seed_for
from fedsdr.tensors import MeanCosine, Tensors, WeightedMean, add, norm
from fedsdr.training.optimizer_step import accumulate_gradients, phase_steps, run_alone
from fedsdr.types import (
    Branch,
    ClientData,
    ClientFault,
    ClientTask,
    ClientUpdate,
    Example,
    R,
    S,
    ServerState,
    TokenRow,
)

Rows = Mapping[str, Sequence[Example]]  # client -> rows
Prepare = Callable[[str], None]  # sets the adapters for a client


def sample_rows(seed: int, client_id: str, count: int, limit: int) -> list[int]:
    """Return at most `limit` of the indices below `count`, drawn by the seed, in order."""
    rng = random.Random(seed_for(seed, "diagnose", client_id))
    return sorted(rng.sample(range(count), min(count, limit)))


def set_initial(runtime: ClientRuntime) -> Prepare:
    """Return a function that sets the R that the run started from: A random, B zero."""
    start = runtime.model.initial(R, seed_for(runtime.config.seed, "start"))
    return lambda client_id: runtime.model.set(start)


def set_final(runtime: ClientRuntime, state: ServerState) -> Prepare:
    """Return a function that sets the shared tensors and the client's S (B_S = 0 if none)."""

    def prepare(client_id: str) -> None:
        runtime.model.set(state.shared)
        if S in runtime.method.private:
            runtime.model.set(runtime.private_of(client_id, state) or runtime.model.initial(S, 0))

    return prepare


def gradient_alignment(
    runtime: ClientRuntime, rows: Rows, branches: tuple[Branch, ...], prepare: Prepare
) -> dict[str, Any]:
    """Return the mean cosines of gradients of the loss in R's factors; None if not defined.

    `mean` is over pairs of clients. `within` is between two halves of one client's rows, averaged
    over clients: what identical clients would show with half as many rows.
    """
    clients, withins = MeanCosine(), []
    for client_id, examples in rows.items():
        prepare(client_id)
        encoded = runtime.encode(examples)
        whole, halves = WeightedMean(), MeanCosine()
        for half in (encoded[::2], encoded[1::2]):
            gradient, tokens = _gradient(runtime, branches, half)
            if tokens:
                whole.add(gradient, tokens)
                halves.add(gradient, norm(gradient))
        if whole.total_weight:
            clients.add(whole.result(), norm(whole.result()))
        if (within := halves.result()) is not None:
            withins.append(within)
    return {
        "mean": clients.result(),
        "within": statistics.fmean(withins) if withins else None,
        "rows": sum(map(len, rows.values())),
    }


def _gradient(
    runtime: ClientRuntime, branches: tuple[Branch, ...], rows: Sequence[TokenRow]
) -> tuple[Tensors, int]:
    """Return the gradient of the mean loss per supervised token, and the number of tokens."""
    parameters = runtime.model.parameters(R)
    with runtime.model.using(*branches, trained=R):
        pack_tokens = runtime.config.train.pack_tokens
        _, tokens = accumulate_gradients(
            runtime.model.model, parameters.values(), rows, pack_tokens
        )
        found = {n: p.grad.cpu().clone() for n, p in parameters.items() if p.grad is not None}
    return found, tokens


def loss_transfer(
    runtime: ClientRuntime,
    trained: Rows,
    measured: Rows,
    prepare: Prepare,
    steps: int,
    advance: Advance,
) -> dict[str, Any]:
    """Return how `steps` optimizer steps of R alone on one client change the loss of another.

    matrix[i][j] is the loss on j's rows after training on i minus that before, in nats per token.
    Each training starts from `prepare` with the run's settings, at most 8 rows a batch, no dropout.
    `mean` is over i != j; `percent` is the mean of the changes relative to the losses before.
    """
    settings = client_settings(runtime.config)
    settings = dataclasses.replace(settings, batch_size=min(settings.batch_size, 8))

    def losses() -> NDArray[np.float64]:
        return np.array([mean_loss(runtime, rows, (R,)) for rows in measured.values()])

    prepare(next(iter(trained)))
    before, after = losses(), []
    for client_id, examples in trained.items():
        prepare(client_id)
        rows = list(islice(cycle(runtime.encode(examples)), steps * settings.batch_size))
        with runtime.model.using(R, trained=R):
            training = phase_steps(
                runtime.model.parameters(R),
                rows,
                settings,
                epochs=1,
                seed=seed_for(runtime.config.seed, "diagnose", client_id),
            )
            run_alone(training, runtime.model.model)
        after.append(losses())
        advance(1)
    matrix = np.stack(after) - before
    others = np.eye(*matrix.shape) == 0
    return {
        "mean": float(matrix[others].mean()),
        "percent": float((100 * matrix / before)[others].mean()),
        "before": before.tolist(),
        "matrix": matrix.tolist(),
        "rows": sum(map(len, measured.values())),
    }


def mean_loss(
    runtime: ClientRuntime,
    examples: Sequence[Example],
    branches: tuple[Branch, ...],
    mixed_by: ClientData | None = None,
) -> float:
    """Return the loss in nats per supervised token with these branches in the forward.

    NaN if every row was cut before its answer. `mixed_by`: the client that weighs the branches
    per instance, as feddpa does.
    """
    with forward_of(runtime, branches, mixed_by) as (losses_of, _):
        losses = losses_of(examples)
    tokens = sum(tokens for _, tokens in losses)
    return sum(loss for loss, _ in losses) / tokens if tokens else math.nan


def branch_losses(
    runtime: ClientRuntime, client: ClientData, examples: Sequence[Example]
) -> dict[str, float]:
    """Return the loss under base, R, S and R+S, as far as the method has them, as they are set."""
    method = runtime.method
    has = {*method.sent, *method.private}
    every: list[tuple[Branch, ...]] = [(), (R,), (S,), (R, S)]
    return {
        "+".join(branches) or "base": mean_loss(
            runtime, examples, branches, client if method.mixed and len(branches) > 1 else None
        )
        for branches in every
        if has.issuperset(branches)
    }


def extra_round(
    runtime: ClientRuntime,
    clients: Sequence[ClientData],
    state: ServerState,
    rows: Rows,
    advance: Advance,
) -> dict[str, Any]:
    """Run one more round with every client in a copy of the folder; return only numbers.

    They are what averaging does to the updates, and each client's losses before and after it: with
    its own R and with the new global R, each alone and beside its S.
    """
    by_id = {client.client_id: client for client in clients}
    plan = dataclasses.replace(
        plan_of(runtime.config, announced_by(clients)), clients_per_round=0, min_updates=1
    )
    # Personalization after the last round counts as a round of the client's own.
    state = dataclasses.replace(state, round=max([state.round, *state.accepted.values()]))
    updates: list[ClientUpdate] = []
    losses: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        copy = dataclasses.replace(runtime, folder=Path(temporary))
        for name in ("clients", "distilled", BEST):
            if (runtime.folder / name).is_dir():
                shutil.copytree(runtime.folder / name, copy.folder / name)

        def measure(client_id: str, whose: str) -> None:
            found = branch_losses(copy, by_id[client_id], rows[client_id])
            losses.setdefault(client_id, {}).update(
                {name.replace(R, f"{whose} R"): x for name, x in found.items() if R in name}
            )

        def train(task: ClientTask) -> ClientUpdate | ClientFault:
            update = decoded(train_at(copy, by_id[task.client_id], task), task)
            measure(task.client_id, "own")
            if isinstance(update, ClientUpdate):
                updates.append(update)
            advance(1)
            return update

        after, _ = run_round(state, plan, lambda tasks: map(train, tasks))
        for client_id in losses:
            set_final(copy, after)(client_id)
            measure(client_id, "new global")
    return {"losses": losses, **_what_averaging_does(state.shared, updates)}


def _what_averaging_does(shared: Tensors, updates: Sequence[ClientUpdate]) -> dict[str, Any]:
    weights = [update.num_examples for update in updates]
    error = product_error([add(shared, update.delta) for update in updates], weights)
    norms = [norm(update.delta) for update in updates]
    mean, cosine = WeightedMean(), MeanCosine()
    for update, size in zip(updates, norms, strict=True):
        mean.add(update.delta, update.num_examples)
        cosine.add(update.delta, size)
    return {
        "product error": error.total,
        "product error, largest of a module": max(error.modules.values()),
        "cosine of updates": {"mean": cosine.result()},
        "norm of the mean": norm(mean.result()),
        "mean of the norms": statistics.fmean(norms),
        "rows": sum(weights),
    }
