"""The mean of products against full matrices in fp64."""

import pytest
import torch
from tiny_factors import SHAPES, random_factors

from fedsdr.algorithms.aggregation import AGGREGATIONS, RoundContext
from fedsdr.algorithms.product_aggregation import leading_part
from fedsdr.tensors import Tensors, add, subtract

RANK = 4


def factors(seed: int, rank: int = RANK, size: float = 1.0) -> Tensors:
    return random_factors(seed, rank, size)


SHARED = factors(0)


def products(own: Tensors) -> list[torch.Tensor]:
    """B A of each module, a full matrix in fp64."""
    return [own[f"{m}.lora_B"].double() @ own[f"{m}.lora_A"].double() for m in SHAPES]


def truncated(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    u, s, vh = torch.linalg.svd(matrix)
    return u[:, :rank] @ torch.diag(s[:rank]) @ vh[:rank]


def aggregated(clients, weights, shared=SHARED, starts=None):
    """R + D and the facts, for clients that return these factors."""
    starts = starts or {}
    context = RoundContext(1, len(clients), shared, starts=starts)
    changes = [subtract(own, context.start(own["R/q.lora_A"].shape[0])) for own in clients]
    found = AGGREGATIONS["product"].combine(zip(changes, weights, strict=True), context)
    return add(shared, found.pseudo_gradient), found.facts


def assert_products(own, expected):
    for got, want in zip(products(own), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_the_new_factors_hold_the_truncated_weighted_mean_of_the_products():
    clients, weights = [factors(seed) for seed in (1, 2, 3)], [5.0, 2.0, 3.0]
    after, facts = aggregated(clients, weights)
    exact = [
        sum(w / 10 * p for w, p in zip(weights, of_module, strict=True))
        for of_module in zip(*map(products, clients), strict=True)
    ]
    assert_products(after, [truncated(m, RANK) for m in exact])
    lost = sum((m - truncated(m, RANK)).square().sum() for m in exact)
    whole = sum(m.square().sum() for m in exact)
    assert facts["product_lost"] == pytest.approx((lost / whole).sqrt().item(), rel=1e-6)
    assert facts["product_lost"] > 0.1


def test_clients_that_share_a_lose_nothing_and_agree_with_the_mean():
    clients = [
        {n: SHARED[n] if n.endswith("lora_A") else x for n, x in factors(seed).items()}
        for seed in (1, 2, 3)
    ]
    after, facts = aggregated(clients, [1.0, 1.0, 2.0])
    context = RoundContext(1, 3, SHARED)
    changes = [(subtract(own, SHARED), w) for own, w in zip(clients, (1, 1, 2), strict=True)]
    mean = add(SHARED, AGGREGATIONS["mean"].combine(iter(changes), context).pseudo_gradient)
    assert_products(after, products(mean))
    assert facts["product_lost"] < 1e-7


def test_the_chosen_factors_do_not_depend_on_how_a_client_holds_its_product():
    own = factors(1)
    turn = torch.linalg.qr(torch.randn(RANK, RANK, generator=torch.Generator().manual_seed(2)))[0]
    turned = {n: turn.T @ x if n.endswith("lora_A") else x @ turn for n, x in own.items()}
    one, other = aggregated([own], [1.0])[0], aggregated([turned], [1.0])[0]
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-4)


def test_a_small_change_of_the_product_is_a_small_change_of_the_factors():
    settled = add(SHARED, {n: torch.zeros_like(x) for n, x in SHARED.items()})
    settled, _ = aggregated([settled], [1.0])  # in the chosen form
    moved = add(settled, factors(5, size=1e-3))
    after, _ = aggregated([moved], [1.0], shared=settled)
    size = sum(x.square().sum() for x in subtract(after, settled).values()).sqrt()
    asked = sum(x.square().sum() for x in factors(5, size=1e-3).values()).sqrt()
    assert size < 5 * asked


def test_before_the_first_step_the_factors_stay_alive():
    start = {n: torch.zeros_like(x) if n.endswith("lora_B") else x for n, x in SHARED.items()}
    after, facts = aggregated([start, start], [1.0, 1.0], shared=start)
    assert facts["product_lost"] == 0.0
    for name, x in after.items():
        assert bool(x.any()) == name.endswith("lora_A")
        assert torch.linalg.matrix_rank(x).item() == (RANK if name.endswith("lora_A") else 0)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_the_leading_part_is_the_truncated_product(rank):
    part = leading_part(SHARED, rank)
    assert part["R/q.lora_A"].shape == (rank, 12)
    assert part["R/q.lora_B"].shape == (10, rank)
    assert_products(part, [truncated(m, rank) for m in products(SHARED)])


def test_the_leading_part_of_a_smaller_rank_is_the_beginning_of_that_of_a_larger_one():
    small, large = leading_part(SHARED, 2), leading_part(SHARED, 4)
    assert torch.equal(small["R/q.lora_A"], large["R/q.lora_A"][:2])
    assert torch.equal(small["R/q.lora_B"], large["R/q.lora_B"][:, :2])


STARTS = {rank: leading_part(SHARED, rank) for rank in (2, 4)}


def test_clients_of_different_ranks_that_change_nothing_change_nothing():
    for ranks in ((2, 4), (2, 2, 2, 4), (2, 2)):  # in the last one nobody has components 3 and 4
        clients = [STARTS[rank] for rank in ranks]
        after, facts = aggregated(clients, [1.0] * len(ranks), starts=STARTS)
        assert_products(after, products(SHARED))
        assert facts["product_lost"] < 1e-6


def test_each_component_is_the_mean_of_the_clients_that_have_it():
    small, large = add(STARTS[2], factors(1, 2, 0.3)), add(STARTS[4], factors(2, 4, 0.3))
    after, _ = aggregated([small, large], [3.0, 1.0], starts=STARTS)
    expected = []
    for m in SHAPES:
        (b2, a2), (b4, a4) = (
            (own[f"{m}.lora_B"].double(), own[f"{m}.lora_A"].double()) for own in (small, large)
        )
        both = 0.75 * b2 @ a2 + 0.25 * b4[:, :2] @ a4[:2]
        expected.append(truncated(both + b4[:, 2:] @ a4[2:], RANK))
    assert_products(after, expected)


def test_a_rank_above_the_size_of_a_layer_is_kept():
    shapes = {"R/q": (3, 12)}  # out is 3, the rank 4
    own = {n: x[:3] if n.endswith("lora_B") else x for n, x in factors(1).items() if "q" in n}
    start = {n: x[:3] if n.endswith("lora_B") else x for n, x in SHARED.items() if "q" in n}
    context = RoundContext(1, 1, start)
    change = [(subtract(own, start), 1.0)]
    found = AGGREGATIONS["product"].combine(iter(change), context)
    after = add(start, found.pseudo_gradient)
    for m in shapes:
        got = after[f"{m}.lora_B"] @ after[f"{m}.lora_A"]
        torch.testing.assert_close(
            got, own[f"{m}.lora_B"] @ own[f"{m}.lora_A"], rtol=1e-4, atol=1e-4
        )
