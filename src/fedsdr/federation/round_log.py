"""What happened in one round: the accepted and refused updates, the next state, the record."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from fedsdr.algorithms.aggregation import Combined
from fedsdr.algorithms.client_corrections import new_server_control
from fedsdr.algorithms.compression import encoded_bytes
from fedsdr.errors import UserError, one_line
from fedsdr.federation.plan import Plan
from fedsdr.federation.privacy_accounting import epsilon_spent
from fedsdr.tensors import MeanCosine, Tensors, WeightedMean, add, all_finite, norm, num_bytes
from fedsdr.types import ClientTask, ClientUpdate, RoundRecord, ServerState


class RoundLog:
    """Collects what a round leaves besides the aggregate, with one update in memory at a time.

    Under differential privacy neither the norms of the updates nor their cosine are recorded: the
    noise was not made to cover them.
    """

    def __init__(self, round: int, plan: Plan) -> None:
        self.round, self.plan = round, plan
        self.accepted: list[ClientUpdate] = []  # without their tensors
        self.refused: list[dict[str, object]] = []
        self._began = time.perf_counter()
        self._norms: dict[str, float] = {}
        self._cosine = MeanCosine()
        self._control_delta = WeightedMean()

    def refuse(self, client_id: str, reason: str) -> None:
        """Record a client that is left out, with the reason in one printable line."""
        self.refused.append({"id": client_id, "reason": one_line(reason)})

    def accept(self, update: ClientUpdate) -> None:
        """Record an accepted update; SCAFFOLD's control deltas are averaged with equal weights."""
        if not self.plan.is_private:
            size = self._norms[update.client_id] = norm(update.delta)
            if not self.plan.ranks:  # factors of different ranks have no angle
                self._cosine.add(update.delta, size)
        if update.control_delta:
            self._control_delta.add(update.control_delta, 1.0)
        self.accepted.append(replace(update, delta={}, control_delta={}))

    def reasons(self) -> str:
        """Return why clients were left out, in one line."""
        return "; ".join(f"{r['id']}: {r['reason']}" for r in self.refused) or "no client answered"

    def next_state(
        self,
        state: ServerState,
        step: Tensors,
        optimizer_state: Mapping[str, Tensors],
        num_tasks: int,
    ) -> ServerState:
        """Return the state after the round. UserError when a value of it is not finite."""
        clients = len(self.plan.clients)
        control = state.control
        if control:
            mean_delta = self._control_delta.result()
            control = new_server_control(control, mean_delta, len(self.accepted), clients)
        shared = state.shared | add({name: state.shared[name] for name in step}, step)
        if not all(map(all_finite, (shared, control, *optimizer_state.values()))):
            raise UserError(
                f"round {self.round}: the new global state is not finite; norms of the updates: "
                f"{self._largest_norms()}; set federation.max_update_norm or lower algorithm.lr"
            )
        draws: tuple[tuple[int, int], ...] = ()
        if self.plan.is_private:
            # Rounds without a recorded draw count as if all clients had been asked.
            unknown = ((clients, clients),) * (state.round - len(state.draws))
            draws = (*unknown, *state.draws, (clients, num_tasks))
        accepted = {**state.accepted, **{u.client_id: self.round for u in self.accepted}}
        return ServerState(self.round, shared, optimizer_state, control, accepted, draws)

    def record(
        self, tasks: Sequence[ClientTask], step: Tensors, after: ServerState, combined: Combined
    ) -> RoundRecord:
        """Return the line of rounds.jsonl."""
        plan, control_bytes = self.plan, num_bytes(after.control)
        starts = {task.client_id: task.shared for task in tasks}
        distinct = {id(x): x for x in starts.values()}  # clients of one rank share theirs
        down = {i: num_bytes(x) + control_bytes for i, x in distinct.items()}
        dtype = plan.settings.update_dtype
        up = {i: encoded_bytes(x, dtype) + control_bytes for i, x in distinct.items()}
        return RoundRecord(
            round=self.round,
            clients=tuple(self._entries(combined)),
            refused=tuple(self.refused),
            bytes_down=sum(down[id(x)] for x in starts.values()),
            bytes_up=sum(up[id(starts[update.client_id])] for update in self.accepted),
            step_norm=norm(step),
            seconds=time.perf_counter() - self._began,
            update_cosine=self._cosine.result(),
            epsilon=epsilon_spent(plan.privacy, after.draws) if plan.is_private else None,
            left_out=tuple(
                {"id": self.accepted[i].client_id, "reason": reason}
                for i, reason in sorted(combined.left_out.items())
            ),
            aggregation=combined.facts,
        )

    def _entries(self, combined: Combined) -> Iterator[dict[str, object]]:
        for i, update in enumerate(self.accepted):
            entry = {"id": update.client_id, "num_examples": update.num_examples}
            if update.client_id in self._norms:
                entry["norm"] = self._norms[update.client_id]
            if combined.used:
                entry["used"] = combined.used[i]
            yield entry | dict(update.metrics)

    def _largest_norms(self) -> str:
        largest = sorted(self._norms.items(), key=lambda item: -item[1])[:3]
        return ", ".join(f"{client} {size:.3g}" for client, size in largest) or "not recorded"
