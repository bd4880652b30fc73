"""Split one data set between clients. Each partitioner is a function of one signature:

    (examples, num_clients, alpha, seed) -> one ascending list of indices a client

Every index is in exactly one list and no list is empty; the same arguments give the same lists.
UserError when there are fewer examples than clients, and in `category` and `dirichlet` when an
example has no category. Only `dirichlet` and `quantity` use alpha.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import Generator

from fedsdr.errors import UserError
from fedsdr.seeds import seed_for
from fedsdr.types import Example

Examples = Sequence[Example]
Partitioner = Callable[[Examples, int, float, int], list[list[int]]]

REDRAWS = 10


def iid(examples: Examples, num_clients: int, alpha: float, seed: int) -> list[list[int]]:
    """Deal shuffled rows; the sizes differ by at most one."""
    rng = _generator("iid", examples, num_clients, seed)
    return _ascending(np.array_split(rng.permutation(len(examples)), num_clients))


def category(examples: Examples, num_clients: int, alpha: float, seed: int) -> list[list[int]]:
    """Deal whole categories: one a client, in alphabetical order, if the counts match.

    With more categories than clients they are shuffled and dealt in turn. With fewer, the category
    with the most rows a part is cut into one more part until there are enough.
    """
    rng = _generator("category", examples, num_clients, seed)
    groups = _by_category(examples)
    if len(groups) > num_clients:
        hands: list[list[int]] = [[] for _ in range(num_clients)]
        for turn, group in enumerate(rng.permutation(len(groups))):
            hands[turn % num_clients] += groups[group]
        return _ascending(hands)
    parts = [1] * len(groups)
    for _ in range(num_clients - len(groups)):
        parts[max(range(len(groups)), key=lambda i: len(groups[i]) / parts[i])] += 1
    cut = zip(groups, parts, strict=True)
    return _ascending([p for g, n in cut for p in np.array_split(rng.permutation(g), n)])


def dirichlet(examples: Examples, num_clients: int, alpha: float, seed: int) -> list[list[int]]:
    """Label skew: the rows of each category c are divided by p_c ~ Dir(alpha * 1).

    A small alpha gives most of a category to one client; a large one is nearly iid. Yurochkin et
    al. (ICML 2019), Hsu et al. (2019).
    """
    rng = _generator("dirichlet", examples, num_clients, seed)
    return _divided(_by_category(examples), num_clients, alpha, rng)


def quantity(examples: Examples, num_clients: int, alpha: float, seed: int) -> list[list[int]]:
    """Quantity skew: shuffled rows are divided in sizes ~ Dir(alpha * 1)."""
    rng = _generator("quantity", examples, num_clients, seed)
    return _divided([list(range(len(examples)))], num_clients, alpha, rng)


PARTITIONERS: dict[str, Partitioner] = {
    "iid": iid,
    "category": category,
    "dirichlet": dirichlet,
    "quantity": quantity,
}


def _generator(name: str, examples: Examples, num_clients: int, seed: int) -> Generator:
    if num_clients > len(examples):
        have = f"{len(examples)} examples (rows of one prompt count once)"
        raise UserError(f"data.num_clients: {num_clients} clients but only {have}; lower it")
    return np.random.default_rng(seed_for(seed, "partition", name))


def _by_category(examples: Examples) -> list[list[int]]:
    """Return the indices of each category, the categories in alphabetical order."""
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(example.category, []).append(index)
    if "" in groups:
        count = f"{len(groups[''])} of {len(examples)} rows have no 'category'"
        raise UserError(f"data.partition: {count}; add the column or use iid or quantity")
    return [groups[name] for name in sorted(groups)]


def _divided(
    groups: Sequence[Sequence[int]], num_clients: int, alpha: float, rng: Generator
) -> list[list[int]]:
    """Cut each shuffled group by a Dirichlet draw, and redraw while a client has nothing.

    If no redraw helps, the largest client gives single rows to the empty ones.
    """
    for _ in range(REDRAWS):
        hands: list[list[int]] = [[] for _ in range(num_clients)]
        for group in groups:
            shares = rng.dirichlet(np.full(num_clients, alpha))
            cuts = (np.cumsum(shares)[:-1] * len(group)).astype(int)
            for hand, part in zip(hands, np.split(rng.permutation(group), cuts), strict=True):
                hand += part.tolist()
        if all(hands):
            break
    for hand in hands:
        if not hand:
            hand.append(max(hands, key=len).pop())
    return _ascending(hands)


def _ascending(hands: Sequence[Sequence[int] | np.ndarray]) -> list[list[int]]:
    return [sorted(int(index) for index in hand) for hand in hands]
