"""Every partitioner deals every example to exactly one client and leaves none empty."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedsdr.config import DataConfig
from fedsdr.data.partition import PARTITIONERS
from fedsdr.errors import UserError
from fedsdr.types import Example

everyone = pytest.mark.parametrize("name", [name for name in PARTITIONERS if name != "natural"])


def deal(name, examples, num_clients, alpha=0.5, seed=0, **keys):
    data = DataConfig(num_clients=num_clients, alpha=alpha, seed=seed, **keys)
    return PARTITIONERS[name](examples, data)


iid, category, dirichlet, quantity = (
    partial(deal, name) for name in ("iid", "category", "dirichlet", "quantity")
)


def examples_of(labels):
    return [Example(str(i), f"q{i}", "", "a", category=label) for i, label in enumerate(labels)]


def labels_of(examples, part):
    return Counter(examples[i].category for i in part)


@everyone
@given(data=st.data())
def test_each_example_is_in_one_client_no_client_is_empty_and_a_seed_repeats(name, data):
    labels = data.draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=40))
    num_clients = data.draw(st.integers(1, len(labels)))
    alpha = data.draw(st.sampled_from([1e-6, 0.1, 0.5, 1.0, 100.0, 1e9]))
    seed = data.draw(st.integers(0, 2**40))
    examples = examples_of(labels)
    per_client = data.draw(st.integers(1, 4))
    if name == "pathological":
        per_client = max(per_client, -(-len(set(labels)) // num_clients))
    keys = {"per_client": per_client, "sizes": [*range(1, num_clients + 1)]}
    parts = deal(name, examples, num_clients, alpha, seed, **keys)
    assert len(parts) == num_clients
    assert all(parts)
    assert sorted(i for part in parts for i in part) == list(range(len(labels)))
    assert all(part == sorted(part) for part in parts)
    assert parts == deal(name, examples, num_clients, alpha, seed, **keys)


@everyone
def test_another_seed_deals_otherwise(name):
    examples = examples_of("abcdefgh" * 12)
    one, two = (deal(name, examples, 4, seed=seed, sizes=[1, 2, 3, 4]) for seed in (0, 1))
    assert one != two


def test_iid_sizes_differ_by_at_most_one():
    assert sorted(map(len, iid(examples_of("a" * 23), 5, 0.5, 0))) == [4, 4, 5, 5, 5]


def test_category_gives_one_category_a_client_in_order_when_the_counts_match():
    assert category(examples_of("bacab"), 3, 0.5, 9) == [[1, 3], [0, 4], [2]]


def test_category_gives_each_client_its_share_of_whole_categories_when_there_are_more():
    examples = examples_of("aabbccddeeffgg")
    parts = category(examples, 3, 0.5, 0)
    held = [set(labels_of(examples, part)) for part in parts]
    assert sorted(map(len, held)) == [2, 2, 3]
    assert set.union(*held) == set("abcdefg")
    assert sum(map(len, held)) == 7
    assert any(category(examples, 3, 0.5, seed) != parts for seed in range(1, 4))


def test_category_cuts_the_largest_categories_when_there_are_fewer():
    # a 12, b 4, 4 clients: a is cut first (12 a part), again (6), so 4 + 4 + 4 and b's 4.
    examples = examples_of("a" * 12 + "b" * 4)
    parts = [dict(labels_of(examples, part)) for part in category(examples, 4, 0.5, 0)]
    assert parts == [{"a": 4}, {"a": 4}, {"a": 4}, {"b": 4}]


def shares(partitioner, alpha, draws=300, rows=2000, clients=4):
    examples = examples_of("a" * rows)
    return np.array([len(partitioner(examples, clients, alpha, s)[0]) for s in range(draws)]) / rows


@pytest.mark.parametrize("partitioner", [quantity, dirichlet])
def test_a_clients_share_follows_the_beta_marginal_of_the_dirichlet(partitioner):
    # One coordinate of Dir(alpha * 1_K) is Beta(alpha, alpha (K - 1)).
    drawn = shares(partitioner, alpha=2.0)
    assert stats.kstest(drawn, stats.beta(2.0, 6.0).cdf).pvalue > 0.01
    assert stats.kstest(drawn, stats.beta(1.0, 3.0).cdf).pvalue < 1e-3


def test_dirichlet_nears_iid_for_a_large_alpha_and_one_client_a_category_for_a_small_one():
    examples = examples_of("a" * 400 + "b" * 400 + "c" * 400)
    for part in dirichlet(examples, 4, 1e6, 0):
        assert all(abs(count - 100) <= 2 for count in labels_of(examples, part).values())
    parts = [labels_of(examples, part) for part in dirichlet(examples, 3, 1e-4, 0)]
    for label in "abc":
        assert max(part[label] for part in parts) >= 398  # the empty ones were given single rows


def test_dirichlet_draws_each_category_by_itself():
    examples = examples_of("a" * 500 + "b" * 500)
    one, two = (
        np.array(
            [labels_of(examples, dirichlet(examples, 4, 2.0, s)[0])[label] for s in range(200)]
        )
        for label in "ab"
    )
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.2


@everyone
def test_fewer_examples_than_clients_are_refused(name):
    with pytest.raises(UserError, match=r"data\.num_clients: 3 clients but only 2 examples"):
        deal(name, examples_of("ab"), 3, sizes=[1, 1, 1])


@pytest.mark.parametrize("name", ["category", "dirichlet", "pathological", "shard", "natural"])
def test_rows_without_a_category_are_refused_where_it_is_needed(name):
    examples = [*examples_of("ab"), Example("x", "q", "", "a")]
    with pytest.raises(UserError, match="1 of 3 rows have no 'category'"):
        deal(name, examples, 2)


# The sizes of flwr-datasets 0.6.1: SizePartitioner, LinearPartitioner, SquarePartitioner and
# ExponentialPartitioner, which add what rounding leaves to the largest part.
@pytest.mark.parametrize(
    ("name", "rows", "sizes"),
    [
        ("size", 60, [15, 5, 40]),
        ("linear", 100, [10, 20, 30, 40]),
        ("linear", 103, [10, 20, 30, 43]),
        ("square", 100, [3, 13, 30, 54]),
        ("exponential", 100, [3, 8, 23, 66]),
    ],
)
def test_sizes_are_those_of_flwr_datasets(name, rows, sizes):
    parts = deal(name, examples_of("a" * rows), len(sizes), sizes=sizes)
    assert [len(part) for part in parts] == sizes


def test_sizes_that_are_not_one_a_client_are_refused():
    with pytest.raises(UserError, match=r"data\.sizes: has 2 numbers for data\.num_clients = 3"):
        deal("size", examples_of("a" * 9), 3, sizes=[1, 2])


@pytest.mark.parametrize(("clients", "per_client"), [(4, 2), (8, 2), (3, 5), (10, 3)])
def test_pathological_gives_each_client_its_number_of_categories_and_uses_each_as_often(
    clients, per_client
):
    examples = examples_of("abcdefgh" * 30)
    held = [set(labels_of(examples, part))
            for part in deal("pathological", examples, clients, per_client=per_client)]  # fmt: skip
    assert [len(labels) for labels in held] == [per_client] * clients
    uses = Counter(label for labels in held for label in labels)
    assert len(uses) == 8
    assert max(uses.values()) - min(uses.values()) <= 1


def test_pathological_clients_that_cannot_hold_all_categories_are_refused():
    with pytest.raises(UserError, match=r"data\.per_client: 2 clients with 2 categories each"):
        deal("pathological", examples_of("abcde" * 4), 2)


def test_shards_are_equal_runs_of_the_rows_sorted_by_category():
    # McMahan's MNIST in small: 10 labels of 20 rows, 10 clients of 2 shards of 10 rows.
    examples = examples_of("abcdefghij" * 20)
    parts = [labels_of(examples, part) for part in deal("shard", examples, 10)]
    assert {sum(part.values()) for part in parts} == {20}
    assert all(count in (10, 20) for part in parts for count in part.values())
    assert max(len(part) for part in parts) == 2


def test_natural_clients_are_the_values_of_the_column_in_alphabetical_order():
    assert deal("natural", examples_of("bacab"), 1) == [[1, 3], [0, 4], [2]]
