"""Split one data set between clients. Each partitioner is a function of one signature:

    (examples, data) -> one ascending list of indices a client

`data` is the section of the configuration, of which a partitioner reads `num_clients`, `seed` and
what its docstring names. Every index is in exactly one list and no list is empty; the same
arguments give the same lists. UserError when there are fewer examples than clients, and where
categories are dealt, when an example has none.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import Generator

from fedsdr.config import DataConfig
from fedsdr.errors import UserError
from fedsdr.seeds import seed_for
from fedsdr.types import Example

Examples = Sequence[Example]
Partitioner = Callable[[Examples, DataConfig], list[list[int]]]

REDRAWS = 10


def iid(examples: Examples, data: DataConfig) -> list[list[int]]:
    """Deal shuffled rows; the sizes differ by at most one."""
    rng = _generator("iid", examples, data)
    return _ascending(np.array_split(rng.permutation(len(examples)), data.num_clients))


def category(examples: Examples, data: DataConfig) -> list[list[int]]:
    """Deal whole categories: one a client, in alphabetical order, if the counts match.

    With more categories than clients they are shuffled and dealt in turn. With fewer, the category
    with the most rows a part is cut into one more part until there are enough.
    """
    rng = _generator("category", examples, data)
    groups = _by_category(examples)
    if len(groups) > data.num_clients:
        hands: list[list[int]] = [[] for _ in range(data.num_clients)]
        for turn, group in enumerate(rng.permutation(len(groups))):
            hands[turn % data.num_clients] += groups[group]
        return _ascending(hands)
    parts = [1] * len(groups)
    for _ in range(data.num_clients - len(groups)):
        parts[max(range(len(groups)), key=lambda i: len(groups[i]) / parts[i])] += 1
    cut = zip(groups, parts, strict=True)
    return _ascending([p for g, n in cut for p in np.array_split(rng.permutation(g), n)])


def dirichlet(examples: Examples, data: DataConfig) -> list[list[int]]:
    """Label skew: the rows of each category c are divided by p_c ~ Dir(`alpha` * 1).

    A small alpha gives most of a category to one client; a large one is nearly iid. Yurochkin et
    al. (ICML 2019), Hsu et al. (2019).
    """
    rng = _generator("dirichlet", examples, data)
    return _divided(_by_category(examples), data, rng)


def quantity(examples: Examples, data: DataConfig) -> list[list[int]]:
    """Quantity skew: shuffled rows are divided in sizes ~ Dir(`alpha` * 1)."""
    rng = _generator("quantity", examples, data)
    return _divided([list(range(len(examples)))], data, rng)


def pathological(examples: Examples, data: DataConfig) -> list[list[int]]:
    """Deal `per_client` categories to each client, and divide a category between its clients.

    The shuffled categories are dealt in turn, so all are used, each nearly as often as any other.
    UserError where the clients cannot hold all. Pathological non-IID of Li et al. (2021).
    """
    rng = _generator("pathological", examples, data)
    groups = _by_category(examples)
    each, clients = min(data.per_client, len(groups)), data.num_clients
    if each * clients < len(groups):
        raise UserError(
            f"data.per_client: {clients} clients with {each} categories each cannot hold all "
            f"{len(groups)} of them; raise it or data.num_clients"
        )
    order = rng.permutation(len(groups))
    holders: list[list[int]] = [[] for _ in groups]
    for slot in range(each * clients):
        holders[order[slot % len(groups)]].append(slot // each)
    hands: list[list[int]] = [[] for _ in range(clients)]
    for group, held in zip(groups, holders, strict=True):
        for client, part in zip(
            held, np.array_split(rng.permutation(group), len(held)), strict=True
        ):
            hands[client] += part.tolist()
    return _ascending(_filled(hands))


def shard(examples: Examples, data: DataConfig) -> list[list[int]]:
    """Sort by category, cut into equal shards, and deal `per_client` random shards to each client.

    McMahan et al. (AISTATS 2017).
    """
    rng = _generator("shard", examples, data)
    order = [int(i) for group in _by_category(examples) for i in rng.permutation(group)]
    shards = np.array_split(order, data.num_clients * data.per_client)
    dealt = np.split(rng.permutation(len(shards)), data.num_clients)
    return _ascending(_filled([[int(i) for one in hand for i in shards[one]] for hand in dealt]))


def size(examples: Examples, data: DataConfig) -> list[list[int]]:
    """Deal shuffled rows in proportion to `sizes`, one number a client."""
    if len(data.sizes) != data.num_clients:
        raise UserError(
            f"data.sizes: has {len(data.sizes)} numbers for data.num_clients = {data.num_clients}"
        )
    return _in_proportion("size", examples, data, data.sizes)


def linear(examples: Examples, data: DataConfig) -> list[list[int]]:
    """Deal shuffled rows in proportion to 1, 2, 3, ..."""
    return _in_proportion("linear", examples, data, range(1, data.num_clients + 1))


def square(examples: Examples, data: DataConfig) -> list[list[int]]:
    """Deal shuffled rows in proportion to 1, 4, 9, ..."""
    return _in_proportion("square", examples, data, np.arange(1, data.num_clients + 1) ** 2.0)


def exponential(examples: Examples, data: DataConfig) -> list[list[int]]:
    """Deal shuffled rows in proportion to e, e^2, e^3, ..."""
    powers = np.arange(data.num_clients) - data.num_clients  # negative: a large power overflows
    return _in_proportion("exponential", examples, data, np.exp(powers))


def natural(examples: Examples, data: DataConfig) -> list[list[int]]:
    """One client for each category, in alphabetical order; `num_clients` is not read.

    The column that says whose a row is, is named by `[data.columns] category = "user"`.
    """
    return _by_category(examples)


PARTITIONERS: dict[str, Partitioner] = {
    "iid": iid,
    "category": category,
    "dirichlet": dirichlet,
    "quantity": quantity,
    "pathological": pathological,
    "shard": shard,
    "size": size,
    "linear": linear,
    "square": square,
    "exponential": exponential,
    "natural": natural,
}


def _generator(name: str, examples: Examples, data: DataConfig) -> Generator:
    if data.num_clients > len(examples):
        have = f"{len(examples)} examples (rows of one prompt count once)"
        raise UserError(f"data.num_clients: {data.num_clients} clients but only {have}; lower it")
    return np.random.default_rng(seed_for(data.seed, "partition", name))


def _by_category(examples: Examples) -> list[list[int]]:
    """Return the indices of each category, the categories in alphabetical order."""
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(example.category, []).append(index)
    if "" in groups:
        count = f"{len(groups[''])} of {len(examples)} rows have no 'category'"
        raise UserError(f"data.partition: {count}; add the column or use iid or quantity")
    return [groups[name] for name in sorted(groups)]


def _divided(groups: Sequence[Sequence[int]], data: DataConfig, rng: Generator) -> list[list[int]]:
    """Cut each shuffled group by a Dirichlet draw, and redraw while a client has nothing."""
    for _ in range(REDRAWS):
        hands: list[list[int]] = [[] for _ in range(data.num_clients)]
        for group in groups:
            shares = rng.dirichlet(np.full(data.num_clients, data.alpha))
            cuts = (np.cumsum(shares)[:-1] * len(group)).astype(int)
            for hand, part in zip(hands, np.split(rng.permutation(group), cuts), strict=True):
                hand += part.tolist()
        if all(hands):
            break
    return _ascending(_filled(hands))


def _in_proportion(
    name: str, examples: Examples, data: DataConfig, weights: Sequence[float] | np.ndarray
) -> list[list[int]]:
    """Deal shuffled rows in sizes floor(rows * w / sum w); the largest gets what is left."""
    rng = _generator(name, examples, data)
    shares = np.asarray(weights, dtype=float)
    sizes = np.floor(len(examples) * shares / shares.sum()).astype(int)
    sizes[int(np.argmax(shares))] += len(examples) - sizes.sum()
    parts = np.split(rng.permutation(len(examples)), np.cumsum(sizes)[:-1])
    return _ascending(_filled([part.tolist() for part in parts]))


def _filled(hands: list[list[int]]) -> list[list[int]]:
    """Let the largest client give single rows to the empty ones."""
    for hand in hands:
        if not hand:
            hand.append(max(hands, key=len).pop())
    return hands


def _ascending(hands: Sequence[Sequence[int] | np.ndarray]) -> list[list[int]]:
    return [sorted(int(index) for index in hand) for hand in hands]
