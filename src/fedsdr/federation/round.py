"""START HERE: one federated round. Every engine runs its clients through `run_round`.

The server sees names, tensors and numbers. It knows no text, no model and no private branch.
"""

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence

from fedsdr.errors import UserError
from fedsdr.federation.norm_bound import within_norm_bound
from fedsdr.federation.plan import Plan, first_state
from fedsdr.federation.round_log import RoundLog
from fedsdr.federation.sampling import sample_clients
from fedsdr.federation.update_checks import rejection_reason
from fedsdr.seeds import seed_for
from fedsdr.tensors import Tensors
from fedsdr.types import ClientFault, ClientTask, ClientUpdate, RoundRecord, ServerState

__all__ = ["Plan", "RunClients", "first_state", "run_round"]

# An engine: it yields exactly one answer for each task, in the order of the tasks, with updates
# decoded to fp32.
RunClients = Callable[[Sequence[ClientTask]], Iterable[ClientUpdate | ClientFault]]


def run_round(
    state: ServerState, plan: Plan, run_clients: RunClients
) -> tuple[ServerState, RoundRecord]:
    """Sample clients, send tasks, check the updates, aggregate, take the server step (Eq. 10).

    Returns the next state and the line of rounds.jsonl. Updates are consumed one at a time. A
    client that fails or whose update is refused is recorded and left out. Raises UserError when
    fewer than `plan.min_updates` updates remain or the new state is not finite.
    """
    log = RoundLog(state.round + 1, plan)
    tasks = client_tasks(state, plan)
    updates = accepted_updates(run_clients(tasks), tasks, plan, log)
    combined = plan.aggregation.combine(updates, plan.context(state, tasks))
    step, optimizer_state = plan.server_optimizer.update(
        combined.pseudo_gradient, state.optimizer_state
    )
    next_state = log.next_state(state, step, optimizer_state, len(tasks))
    return next_state, log.record(tasks, step, next_state, combined)


def client_tasks(state: ServerState, plan: Plan) -> list[ClientTask]:
    """Return one task for each client of the next round, ordered by the client's name.

    Under differential privacy the draw is secret: epsilon assumes that nobody can compute from a
    known seed who took part.
    """
    number = state.round + 1
    seed = secrets.randbits(63) if plan.is_private else plan.seed
    starts = plan.starts(state.shared)
    return [
        ClientTask(
            round=number,
            client_id=client,
            seed=seed_for(plan.seed, "client"),
            shared=starts[client],
            control=state.control,
            settings=plan.settings,
            accepted_round=state.accepted.get(client, 0),
            run_id=plan.run_id,
        )
        for client in sample_clients(plan.clients, plan.clients_per_round, seed, number)
    ]


def accepted_updates(
    answers: Iterable[ClientUpdate | ClientFault],
    tasks: Sequence[ClientTask],
    plan: Plan,
    log: RoundLog,
) -> Iterator[tuple[Tensors, float]]:
    """Yield (delta, weight) of each accepted update; record all answers in `log`.

    An update is checked on its own, then against the others. Raises UserError when fewer than
    `plan.min_updates` were accepted.
    """
    for update in within_norm_bound(valid_updates(answers, tasks, plan, log), plan, log):
        log.accept(update)
        yield update.delta, plan.weight(update.client_id)
    if len(log.accepted) < plan.min_updates:
        raise UserError(
            f"round {log.round}: {len(log.accepted)} of {len(tasks)} updates were accepted, "
            f"federation.min_updates is {plan.min_updates} ({log.reasons()})"
        )


def valid_updates(
    answers: Iterable[ClientUpdate | ClientFault],
    tasks: Sequence[ClientTask],
    plan: Plan,
    log: RoundLog,
) -> Iterator[ClientUpdate]:
    """Yield each update that can be accepted on its own; record the other answers in `log`.

    Raises ValueError when the engine does not give exactly one answer for each task in their order:
    the order of the sum decides its last bit.
    """
    for task, answer in zip(tasks, answers, strict=True):
        if answer.client_id != task.client_id:
            raise ValueError(f"the engine answered {task.client_id} with {answer.client_id}")
        reason = rejection_reason(answer, task, plan)
        if isinstance(answer, ClientFault) or reason:
            log.refuse(task.client_id, reason)
        else:
            yield answer
