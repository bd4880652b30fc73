"""START HERE: one federated round. Every engine goes through `run_round`.

    choose clients -> send tasks -> gather updates -> check -> combine -> step

The server sees names, tensors and counts. It knows no text, no model and no private branch.
"""

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from fedsdr.algorithms.client_corrections import new_server_control
from fedsdr.algorithms.compression import decode_stacked, encode
from fedsdr.algorithms.gaussian_mechanism import add_gaussian
from fedsdr.algorithms.server_optimizers import ServerRule
from fedsdr.errors import UserError
from fedsdr.federation.privacy_accounting import NO_PRIVACY, Privacy, epsilon_spent
from fedsdr.federation.sampling import sample_clients
from fedsdr.federation.update_checks import form_of, reason_of_norm, reason_to_refuse
from fedsdr.seeds import seed_for
from fedsdr.tensors import (
    ByShape,
    MeanCosine,
    Tensors,
    WeightedMean,
    add,
    norm,
    num_bytes,
    scale,
    zeros_like,
)
from fedsdr.types import (
    ClientFault,
    ClientTask,
    ClientUpdate,
    LocalSettings,
    RoundRecord,
    ServerState,
)

# An engine: answers come in the order of the tasks, one at a time; a client may not answer.
RunClients = Callable[[Sequence[ClientTask]], Iterable[ClientUpdate | ClientFault]]


@dataclass(frozen=True)
class Plan:
    """What stays the same in every round."""

    seed: int
    clients: tuple[str, ...]  # names, sorted
    clients_per_round: int  # 0: all
    min_updates: int
    rule: ServerRule
    settings: LocalSettings
    privacy: Privacy = NO_PRIVACY
    max_update_norm: float = 0.0  # 0: any
    run_id: str = ""  # see ClientTask


def first_state(shared: Tensors, plan: Plan) -> ServerState:
    """Return the state before round 1: the initial shared tensors, empty memory, c = 0."""
    scaffold = plan.settings.correction == "scaffold"
    return ServerState(
        round=0,
        shared=shared,
        memory=plan.rule.init(shared),
        control=zeros_like(shared) if scaffold else {},
        accepted={},
    )


def run_round(
    state: ServerState, plan: Plan, run_clients: RunClients
) -> tuple[ServerState, RoundRecord]:
    """Return the next state and what happened.

    R <- R + rule(sum_k (n_k / n) dR_k)                                     (paper, Eq. 10)

    Updates are consumed one at a time, so server memory does not grow with the clients. One that
    is refused, or a client that fails, is recorded and left out. Raises UserError when fewer than
    `min_updates` remain.
    """
    began = time.perf_counter()
    number, privacy = state.round + 1, plan.privacy
    private = privacy.mode != "none"
    # Who takes part hides a client only as long as nobody can work it out from the seed.
    draw = secrets.randbits(63) if private else plan.seed
    tasks = [
        ClientTask(
            round=number,
            client_id=client,
            seed=seed_for(plan.seed, "client"),
            shared=state.shared,
            control=state.control,
            settings=plan.settings,
            accepted_round=state.accepted.get(client, 0),
            run_id=plan.run_id,
        )
        for client in sample_clients(plan.clients, plan.clients_per_round, draw, number)
    ]
    like = encode(state.shared, plan.settings.update_dtype)  # what an update must look like
    form, control_form, by_shape = form_of(like), form_of(state.control), ByShape(state.shared)
    limits = {"federation.max_update_norm": plan.max_update_norm}
    if privacy.mode == "central":  # clipping itself ends within a rounding of its bound
        limits["privacy.clip_norm"] = privacy.clip_norm * (1 + 1e-6)
    delta, control_delta = WeightedMean(), WeightedMean()
    norms, cosine = dict[str, float](), MeanCosine()
    counted: list[ClientUpdate] = []
    refused: list[dict[str, object]] = []
    waiting = iter(tasks)
    for answer in run_clients(tasks):
        # Sums are taken in the order of the tasks, so that arrival order cannot change a bit.
        if not any(task.client_id == answer.client_id for task in waiting):
            raise ValueError(f"the engine answered for {answer.client_id} out of turn")
        reason = reason_to_refuse(answer, number, form, control_form, by_shape)
        if isinstance(answer, ClientFault) or reason:
            refused.append({"id": answer.client_id, "reason": reason})
            continue
        decoded = decode_stacked(answer.delta, by_shape)
        if reason := reason_of_norm(decoded, limits):
            refused.append({"id": answer.client_id, "reason": reason})
            continue
        # A client's rows must not make it heavier than the noise was made for.
        delta.add(decoded, 1 if private else answer.num_examples)
        if not private:  # what is told of an update that noise covers, the noise must cover too
            norms[answer.client_id] = norm(decoded)
            cosine.add(decoded, norms[answer.client_id])
        if state.control:
            control_delta.add(by_shape.stack(answer.control_delta), 1.0)
        # Of a counted update only the numbers are kept.
        counted.append(replace(answer, delta={}, control_delta={}))
    if len(counted) < plan.min_updates:
        why = "; ".join(f"{r['id']}: {r['reason']}" for r in refused) or "no client answered"
        raise UserError(
            f"round {number}: {len(counted)} of {len(tasks)} updates could be counted, "
            f"federation.min_updates is {plan.min_updates} ({why})"
        )
    mean = by_shape.unstack(delta.result())
    if privacy.mode == "central":
        # Divided by the tasks: whether an answer counts may depend on what its client holds.
        mean = add_gaussian(
            scale(mean, len(counted) / len(tasks)),
            privacy.noise_multiplier * privacy.clip_norm / len(tasks),
        )
    step, memory = plan.rule.update(mean, dict(state.memory))
    control = state.control
    if control:
        control = new_server_control(
            control, by_shape.unstack(control_delta.result()), len(counted), len(plan.clients)
        )
    clients = len(plan.clients)
    # Of earlier rounds that an older version did not write down, all are taken to have been asked.
    unknown = ((clients, clients),) * (state.round - len(state.draws))
    draws = (*unknown, *state.draws, (clients, len(tasks))) if private else ()
    record = RoundRecord(
        round=number,
        clients=tuple(
            # A metric cannot take the place of who sent it.
            {"id": u.client_id, "num_examples": u.num_examples}
            | ({} if private else {"norm": norms[u.client_id]})
            | {k: v for k, v in u.metrics.items() if k not in ("id", "num_examples", "norm")}
            for u in counted
        ),
        refused=tuple(refused),
        bytes_down=len(tasks) * (num_bytes(state.shared) + num_bytes(state.control)),
        bytes_up=len(counted) * (num_bytes(like) + num_bytes(state.control)),
        step_norm=norm(step),
        seconds=time.perf_counter() - began,
        update_cosine=cosine.result(),
        epsilon=epsilon_spent(privacy, draws) if private else None,
    )
    accepted = {**state.accepted, **{u.client_id: number for u in counted}}
    return ServerState(number, add(state.shared, step), memory, control, accepted, draws), record
