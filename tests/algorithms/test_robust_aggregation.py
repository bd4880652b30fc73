"""Median, trimmed mean and multi-Krum against scipy, numpy and Flower's own functions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from tiny_factors import SHAPES, random_factors

from fedsdr.algorithms.aggregation import AGGREGATIONS, RoundContext
from fedsdr.algorithms.low_rank import product_change_grams
from fedsdr.algorithms.robust_aggregation import krum_scores, product_outliers
from fedsdr.tensors import Tensors, add

RANK = 2


def factors(seed: int, size: float = 1.0) -> Tensors:
    return random_factors(seed, RANK, size)


SHARED = factors(0)
CONTEXT = RoundContext(1, 8, SHARED, malicious_share=0.25)


def alike(count: int) -> list[Tensors]:
    """Updates of one direction and size, each with noise of its own."""
    return [add(factors(99, 0.1), factors(seed, 0.03)) for seed in range(1, count + 1)]


def combine(name, updates, weights=None, context=CONTEXT):
    pairs = zip(updates, weights or [1.0] * len(updates), strict=True)
    return AGGREGATIONS[name].combine(iter(pairs), context)


def product_changes(updates):
    """P_k in full matrices in fp64, all modules in one row per update."""
    rows = []
    for update in updates:
        parts = []
        for module in SHAPES:
            b, a = SHARED[f"{module}.lora_B"].double(), SHARED[f"{module}.lora_A"].double()
            db, da = update[f"{module}.lora_B"].double(), update[f"{module}.lora_A"].double()
            parts.append(((b + db) @ (a + da) - b @ a).flatten())
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def test_inner_products_of_product_changes_are_those_of_the_full_matrices():
    updates = [factors(seed, 0.3) for seed in range(1, 5)]
    full = product_changes(updates)
    torch.testing.assert_close(product_change_grams(SHARED, updates), full @ full.T)


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_the_median_is_numpys_of_each_coordinate(count):
    updates = alike(count)
    found = combine("median", updates)
    assert not found.left_out
    for name, value in found.pseudo_gradient.items():
        expected = np.median(np.stack([u[name].double().numpy() for u in updates]), axis=0)
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(("count", "share"), [(1, 0.4), (5, 0.25), (8, 0.25), (8, 0.0)])
def test_the_trimmed_mean_is_scipys_of_each_coordinate(count, share):
    updates = alike(count)
    found = combine("trimmed-mean", updates, context=replace(CONTEXT, malicious_share=share))
    for name, value in found.pseudo_gradient.items():
        expected = stats.trim_mean(np.stack([u[name].double().numpy() for u in updates]), share)
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-5, atol=1e-8)


def test_the_share_of_an_update_that_a_coordinate_wise_rule_uses_is_counted():
    shared = {"m.lora_A": torch.zeros(1, 2), "m.lora_B": torch.zeros(1, 1)}
    values = [([1.0, 30.0], 5.0), ([2.0, 20.0], 6.0), ([3.0, 10.0], 7.0)]
    updates = [{"m.lora_A": torch.tensor([a]), "m.lora_B": torch.tensor([[b]])} for a, b in values]
    found = combine("median", updates, context=replace(CONTEXT, shared=shared))
    assert found.used == [0.0, 1.0, 0.0]  # the second is in the middle of all three coordinates


def test_flowers_median_and_trimmed_mean_are_the_same():
    strategies = pytest.importorskip("flwr.serverapp.strategy.fedtrimmedavg")
    updates = alike(8)
    found = combine("trimmed-mean", updates).pseudo_gradient
    for name, value in found.items():
        stacked = np.stack([u[name].double().numpy() for u in updates])
        np.testing.assert_allclose(value.numpy(), strategies.trim_mean(stacked, 0.25), rtol=1e-5)


def test_krum_selects_what_flowers_multi_krum_selects():
    app = pytest.importorskip("flwr.app")
    multikrum = pytest.importorskip("flwr.serverapp.strategy.multikrum")
    points = torch.randn(9, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    contents = [
        app.RecordDict({"arrays": app.ArrayRecord({"x": app.Array(point.numpy())})})
        for point in points
    ]
    selected = multikrum.select_multikrum(contents, 2, 7)
    theirs = [next(i for i, c in enumerate(contents) if c is s) for s in selected]
    ours = krum_scores(torch.cdist(points, points).square(), 2).argsort()[:7]
    assert ours.tolist() == theirs


def test_multi_krum_is_the_weighted_mean_of_the_updates_that_it_keeps():
    updates = [*alike(6), *(factors(seed, 0.5) for seed in (50, 51))]
    weights = [3.0, 1.0, 1.0, 1.0, 1.0, 2.0, 9.0, 9.0]
    found = combine("multi-krum", updates, weights)
    assert found.left_out.keys() == {6, 7}
    assert found.used == [1.0] * 6 + [0.0] * 2
    name = "R/q.lora_A"
    expected = sum(w * u[name] for u, w in list(zip(updates, weights, strict=True))[:6]) / 9
    torch.testing.assert_close(found.pseudo_gradient[name], expected)


def test_multi_krum_sees_factors_whose_product_is_harmless():
    # A is doubled and B halved: the product is that of the others, the factors are not.
    def stretched(update):
        return {n: x + SHARED[n] * (1 if n.endswith("lora_A") else -0.5) for n, x in update.items()}

    updates = [*alike(6), *map(stretched, alike(2))]
    assert combine("multi-krum", updates).left_out.keys() == {6, 7}


@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (lambda update: {n: -x for n, x in update.items()}, "points away"),
        (lambda update: {n: 10 * x for n, x in update.items()}, "changes by"),
    ],
)
def test_an_update_with_an_outlying_product_is_left_out_with_the_reason(rule, attack, reason):
    updates = [*alike(6), *map(attack, alike(2))]
    found = combine(rule, updates)
    assert found.left_out.keys() == {6, 7}
    assert all(reason in text for text in found.left_out.values())
    honest = combine(rule, updates[:6])
    for name, value in honest.pseudo_gradient.items():
        assert torch.equal(found.pseudo_gradient[name], value)


def test_of_unrelated_updates_of_one_size_few_are_outliers():
    found = 0
    for seed in range(50):
        full = product_changes([factors(100 * seed + i, 0.1) for i in range(1, 9)])
        found += len(product_outliers(full @ full.T))
    assert found / (50 * 8) < 0.05


def test_an_honest_minority_that_pulls_the_other_way_is_left_out():
    # Two honest clients whose data ask for the opposite: no rule can tell them from an attack.
    updates = [*alike(6), *({n: -x for n, x in u.items()} for u in alike(2))]
    for rule in ("median", "trimmed-mean", "multi-krum"):
        assert combine(rule, updates).left_out.keys() == {6, 7}


def test_two_updates_have_no_outlier():
    assert product_outliers(torch.tensor([[1.0, -100.0], [-100.0, 1e4]])) == {}


@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "multi-krum"])
def test_updates_of_zeros_give_zeros(rule):
    zeros = [{n: torch.zeros_like(x) for n, x in SHARED.items()}] * 4
    found = combine(rule, zeros)
    assert not any(x.any() for x in found.pseudo_gradient.values())
