import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsdr.seeds import seed_for
from fedsdr.tensors import (
    MeanCosine,
    WeightedMean,
    add,
    all_finite,
    difference_in_spec,
    norm,
    num_bytes,
    scale,
    subtract,
)

parts = st.lists(st.one_of(st.text(max_size=5), st.integers(-5, 5)), max_size=4)


@given(parts, parts)
def test_seeds_are_equal_only_for_equal_parts(a, b):
    assert (seed_for(*a) == seed_for(*b)) == (
        [(type(x), x) for x in a] == [(type(x), x) for x in b]
    )
    assert 0 <= seed_for(*a) < 2**63


def test_a_seed_is_the_same_in_another_process():
    code = "from fedsdr.seeds import seed_for; print(seed_for(0, 'init', 'R/a'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == seed_for(0, "init", "R/a")


def test_the_weighted_mean_is_fp64_inside_and_fp32_outside():
    mean = WeightedMean()
    # In fp32, 1e8 + 1 is 1e8: the sum must not lose the ones.
    for value, weight in ((1e8, 1), (1.0, 1), (1.0, 1), (-1e8, 1)):
        mean.add({"a": torch.tensor([value])}, weight)
    assert mean.result()["a"].dtype == torch.float32
    assert mean.result()["a"].item() == 0.5


def test_a_mean_of_nothing_and_of_other_names_or_shapes_is_an_error():
    mean = WeightedMean()
    with pytest.raises(ValueError, match="not defined"):
        mean.result()
    mean.add({"a": torch.ones(2, 3)}, 1)
    with pytest.raises(ValueError, match="names differ"):
        mean.add({"b": torch.ones(2, 3)}, 1)
    with pytest.raises(ValueError, match="shape"):
        mean.add({"a": torch.ones(1, 3)}, 1)


def test_the_mean_cosine_is_that_of_all_pairs_and_what_has_no_direction_is_left_out():
    given = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    mean = MeanCosine()
    assert mean.result() is None
    for row in (*given, torch.zeros(7)):
        mean.add({"a": row[:3], "b": row[3:]}, float(row.norm()))
    pairs = [(i, j) for i in range(4) for j in range(i)]
    wanted = [float(torch.cosine_similarity(given[i], given[j], dim=0)) for i, j in pairs]
    assert mean.result() == pytest.approx(sum(wanted) / len(wanted), abs=1e-6)


def test_arithmetic_over_names():
    a, b = {"x": torch.tensor([3.0, 4.0])}, {"x": torch.tensor([1.0, 1.0])}
    assert add(a, b)["x"].tolist() == [4.0, 5.0]
    assert subtract(a, b)["x"].tolist() == [2.0, 3.0]
    assert scale(a, 2.0)["x"].tolist() == [6.0, 8.0]
    assert norm(a) == 5.0
    assert num_bytes(a) == 8


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_not_finite_is_found(bad):
    x = torch.zeros(3, 4)
    assert all_finite({"a": x, "empty": torch.zeros(0)})
    x[2, 1] = bad
    assert not all_finite({"b": torch.ones(2), "a": x})


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"a": torch.zeros(2)}, ""),
        ({}, "lacks 'a'"),
        ({"a": torch.zeros(2), "b": torch.zeros(1)}, "has an unexpected tensor 'b'"),
        ({"a": torch.zeros(1, 2)}, "'a' has shape (1, 2), not (2,)"),
        ({"a": torch.zeros(2).half()}, "'a' is float16, not float32"),
    ],
)
def test_the_first_difference_of_names_shapes_and_dtypes_is_named(other, difference):
    assert difference_in_spec(other, {"a": torch.ones(2)}) == difference
