"""The plan of a run, which is the same in every round, and the server's state before round 1."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median

from torch import Tensor

from fedsdr.algorithms.aggregation import AGGREGATIONS, Aggregation, RoundContext
from fedsdr.algorithms.product_aggregation import leading_part, rank_of
from fedsdr.algorithms.server_optimizers import ServerOptimizer
from fedsdr.federation.privacy_accounting import NO_PRIVACY, Privacy
from fedsdr.tensors import Tensors, zeros_like
from fedsdr.types import ClientTask, LocalSettings, ServerState


@dataclass(frozen=True)
class Plan:
    """What stays the same in every round.

    `announced` holds the number of training examples that each client announced before round 1. It
    is the client's weight in the mean, and an update that counts more is refused. Clients that are
    not in it weigh equally, as all clients do under differential privacy.
    """

    seed: int
    clients: tuple[str, ...]  # names, sorted
    clients_per_round: int  # 0: all
    min_updates: int
    server_optimizer: ServerOptimizer
    settings: LocalSettings
    privacy: Privacy = NO_PRIVACY
    max_update_norm: float = 0.0  # 0: no limit
    max_norm_ratio: float = 10.0  # see norm_bound.py; 0: no limit
    max_weight_ratio: float = 0.0  # of the median announced number; 0: no limit
    run_id: str = ""  # see ClientTask
    aggregation: Aggregation = AGGREGATIONS["mean"]
    malicious_share: float = 0.0  # see RoundContext
    announced: Mapping[str, int] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)  # of clients with another rank than R

    def __post_init__(self) -> None:
        if self.privacy.mode == "central" and self.aggregation.is_mean:
            raise ValueError("central differential privacy needs the aggregation noisy_mean")

    @property
    def is_private(self) -> bool:
        """Whether noise is added, by the server or by the clients."""
        return self.privacy.mode != "none"

    def weight(self, client_id: str) -> float:
        """Return the weight of a client's update in the mean.

        The announced number cannot be checked, so `max_weight_ratio` can bound it.
        """
        return 1 if self.is_private else min(self.announced.get(client_id, 1), self._most_weight)

    @cached_property
    def _most_weight(self) -> float:
        limited = self.max_weight_ratio and self.announced
        return self.max_weight_ratio * median(self.announced.values()) if limited else math.inf

    def sent(self, shared: Mapping[str, Tensor]) -> Tensors:
        """Return the factors of R that cross an engine."""
        return {n: x for n, x in shared.items() if not n.endswith(self.aggregation.unsent)}

    def starts(self, shared: Mapping[str, Tensor]) -> dict[str, Tensors]:
        """Return what each client begins from; clients of one rank share the same tensors.

        Where ranks differ, every client gets the leading part of the product, its components in
        one order, so that the component j of one client is that of another.
        """
        sent = self.sent(shared)
        if not self.ranks:
            return dict.fromkeys(self.clients, sent)
        full = rank_of(sent)
        parts = {r: leading_part(sent, r) for r in {full, *self.ranks.values()}}
        return {client: parts[self.ranks.get(client, full)] for client in self.clients}

    def context(self, state: ServerState, tasks: Sequence[ClientTask]) -> RoundContext:
        """Return what the aggregation may know of the round after `state`."""
        return RoundContext(
            round=state.round + 1,
            num_asked=len(tasks),
            shared=self.sent(state.shared),
            malicious_share=self.malicious_share,
            starts={rank_of(t.shared): t.shared for t in tasks} if self.ranks else {},
        )


def first_state(shared: Tensors, plan: Plan) -> ServerState:
    """Return the state before round 1: the initial shared tensors, a new optimizer state, c = 0."""
    scaffold = plan.settings.correction == "scaffold"
    sent = plan.sent(shared)
    return ServerState(
        round=0,
        shared=shared,
        optimizer_state=plan.server_optimizer.init(sent),
        control=zeros_like(sent) if scaffold else {},
        accepted={},
    )
