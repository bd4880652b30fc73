"""Which clients take part in a round."""

import random
from collections.abc import Sequence

from fedsdr.seeds import seed_for


def sample_clients(clients: Sequence[str], count: int, seed: int, round: int) -> list[str]:
    """Return `count` distinct clients, sorted by name; all clients when `count` is 0.

    Every subset is equally likely, and the choice depends on seed and round alone.
    """
    ordered = sorted(clients)
    if count == 0 or count >= len(ordered):
        return ordered
    return sorted(random.Random(seed_for(seed, "sample", round)).sample(ordered, count))
