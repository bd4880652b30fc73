import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedsdr.evaluation.bootstrap import bootstrap_interval


def test_two_values_give_the_quantiles_that_a_hand_gets():
    # The mean of two draws from {0, 1} is 0, 1/2, 1 with chances 1/4, 1/2, 1/4.
    assert bootstrap_interval([0, 1], seed=0) == [0.0, 1.0]
    assert bootstrap_interval([0, 1], seed=0, level=0.4) == [0.5, 0.5]
    assert bootstrap_interval([0, 1], seed=0, level=0.6) == [0.0, 1.0]


def test_equal_values_or_one_alone_give_a_point():
    assert bootstrap_interval([0.25] * 7, seed=0) == [0.25, 0.25]
    assert bootstrap_interval([0.25], seed=0) == [0.25, 0.25]


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_is_that_of_scipy_within_the_error_of_sampling(level):
    values = np.random.default_rng(1).beta(0.5, 1.0, size=40)
    ours = bootstrap_interval(values, seed=2, level=level, resamples=20_000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, confidence_level=level, method="percentile", rng=3
    ).confidence_interval
    standard_error = values.std() / values.size**0.5
    # A 2.5 % quantile of 20,000 draws errs by about 0.02 standard errors.
    assert ours == pytest.approx(list(theirs), abs=0.1 * standard_error)


def test_the_seed_decides_and_nothing_else():
    values = list(np.random.default_rng(7).normal(size=30))
    assert bootstrap_interval(values, seed=8) == bootstrap_interval(values, seed=8)
    assert bootstrap_interval(values, seed=8) != bootstrap_interval(values, seed=9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_an_interval_lies_between_the_least_and_the_greatest_value(values):
    low, high = bootstrap_interval(values, seed=0, resamples=50)
    slack = 1e-12
    assert min(values) - slack <= low <= high <= max(values) + slack


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([], seed=0)
