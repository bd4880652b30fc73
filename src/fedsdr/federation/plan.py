"""The plan of a run, which is the same in every round, and the server's state before round 1."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedsdr.algorithms.aggregation import Aggregation, mean
from fedsdr.algorithms.server_optimizers import ServerOptimizer
from fedsdr.federation.privacy_accounting import NO_PRIVACY, Privacy
from fedsdr.tensors import Tensors, zeros_like
from fedsdr.types import LocalSettings, ServerState


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
    run_id: str = ""  # see ClientTask
    aggregate: Aggregation = mean
    announced: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.privacy.mode == "central" and self.aggregate is mean:
            raise ValueError("central differential privacy needs the aggregation noisy_mean")

    @property
    def is_private(self) -> bool:
        """Whether noise is added, by the server or by the clients."""
        return self.privacy.mode != "none"

    def weight(self, client_id: str) -> int:
        """Return the weight of a client's update in the mean."""
        return 1 if self.is_private else self.announced.get(client_id, 1)


def first_state(shared: Tensors, plan: Plan) -> ServerState:
    """Return the state before round 1: the initial shared tensors, a new optimizer state, c = 0."""
    scaffold = plan.settings.correction == "scaffold"
    return ServerState(
        round=0,
        shared=shared,
        optimizer_state=plan.server_optimizer.init(shared),
        control=zeros_like(shared) if scaffold else {},
        accepted={},
    )
