"""The interface of an aggregation, and the means.

An aggregation reads a stream of (update, weight), where an update is dR_k, and returns the
pseudo-gradient that the server optimizer steps along. The means hold one update at a time.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fedsdr.algorithms.gaussian_mechanism import add_gaussian
from fedsdr.tensors import Tensors, WeightedMean, scale

Updates = Iterable[tuple[Tensors, float]]


@dataclass(frozen=True)
class RoundContext:
    """What an aggregation may know of the round beside its updates.

    `malicious_share` is the share of the updates that may be hostile
    (`algorithm.malicious_share`). `starts` is empty where all clients have the rank of R.
    """

    round: int  # from 1
    num_asked: int  # clients that got a task
    shared: Tensors  # the global R of the round, over the names of the updates
    malicious_share: float = 0.0
    starts: Mapping[int, Tensors] = field(default_factory=dict)  # rank -> what was sent

    def start(self, rank: int) -> Tensors:
        """Return the factors that the clients of a rank began from."""
        return self.starts.get(rank, self.shared)


@dataclass(frozen=True)
class Combined:
    """The pseudo-gradient, and what the record of the round says about it.

    Clients are named by their position in the stream. `left_out` has a reason in one line;
    `used` is the share of each update's values that are in the result, or empty where every
    update counts in full.
    """

    pseudo_gradient: Tensors
    left_out: Mapping[int, str] = field(default_factory=dict)
    used: Sequence[float] = ()
    facts: Mapping[str, float] = field(default_factory=dict)


Combine = Callable[[Updates, RoundContext], Combined]


def mean(updates: Updates, context: RoundContext) -> Combined:
    """Return sum_k w_k dR_k / sum_k w_k, A and B separately (paper, Eq. 10; FedIT)."""
    total = WeightedMean()
    for update, weight in updates:
        total.add(update, weight)
    return Combined(total.result())


def noisy_mean(clip_norm: float, noise_multiplier: float) -> Combine:
    """Return the mean of central differential privacy: (sum_k dR_k + N(0, (z C)^2)) / K.

    C is `clip_norm`, the bound on each update's norm, z is `noise_multiplier`, and K is the number
    of clients that were asked: whether one of them answered may depend on its data, so the divisor
    must not show it. All updates have the same weight (McMahan et al., ICLR 2018).
    """

    def combine(updates: Updates, context: RoundContext) -> Combined:
        total = WeightedMean()
        for update, _ in updates:
            total.add(update, 1.0)
        exact = scale(total.result(), total.total_weight / context.num_asked)
        return Combined(add_gaussian(exact, noise_multiplier * clip_norm / context.num_asked))

    return combine
