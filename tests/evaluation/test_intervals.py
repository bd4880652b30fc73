import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedsdr.evaluation.intervals import bootstrap_interval, score_interval, weighted_mean


def test_two_values_give_the_quantiles_that_a_hand_gets():
    # The mean of two draws from {0, 1} is 0, 1/2, 1 with chances 1/4, 1/2, 1/4.
    assert bootstrap_interval([0, 1], seed=0) == [0.0, 1.0]
    assert bootstrap_interval([0, 1], seed=0, level=0.4) == [0.5, 0.5]
    assert bootstrap_interval([0, 1], seed=0, level=0.6) == [0.0, 1.0]


def test_equal_values_or_one_alone_give_a_point():
    assert bootstrap_interval([0.25] * 7, seed=0) == [0.25, 0.25]
    assert bootstrap_interval([0.25], seed=0) == [0.25, 0.25]


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_bootstrap_is_that_of_scipy_with_other_draws_within_the_sampling_error(level):
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


@pytest.mark.parametrize(
    ("scores", "low", "high"),
    [
        # Wilson (1927) by hand: (k + z^2 / 2 -+ z sqrt(k (n - k) / n + z^2 / 4)) / (n + z^2).
        ([1, 0, 0], 0.0615, 0.7923),
        ([1, 1, 1], 0.4385, 1.0),
        ([0], 0.0, 0.7935),
    ],
)
def test_scores_of_0_or_1_have_wilsons_interval(scores, low, high):
    assert score_interval(scores, seed=0, binary=True) == pytest.approx([low, high], abs=1e-4)


def test_graded_scores_have_the_bootstrap_interval():
    scores = [0.25, 0.5, 1.0, 0.0]
    assert score_interval(scores, seed=1, binary=False) == bootstrap_interval(scores, seed=1)


def test_the_interval_of_a_mean_adds_the_distances_of_independent_means_in_squares():
    intervals = [[0.2, 0.5], [0.6, 0.9]]
    mean, interval = weighted_mean([1, 1], [0.3, 0.8], intervals)
    assert mean == pytest.approx(0.55)
    # Half of sqrt(0.1^2 + 0.2^2) below and of sqrt(0.2^2 + 0.1^2) above.
    assert interval == pytest.approx([0.55 - 0.05**0.5 / 2, 0.55 + 0.05**0.5 / 2])
    assert weighted_mean([3], [0.3], intervals[:1]) == (0.3, pytest.approx(intervals[0]))
    assert weighted_mean([3, 1], [0.3, 0.8], intervals)[0] == pytest.approx((0.9 + 0.8) / 4)


def test_the_mean_of_a_few_0_or_1_scores_per_client_is_covered_as_often_as_the_level_says():
    draw = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        rates = draw.beta(1, 2, size=5)
        rows = [(draw.random(3) < rate).astype(float) for rate in rates]
        intervals = [score_interval(list(of), seed=0, binary=True) for of in rows]
        _, (low, high) = weighted_mean([1] * 5, [of.mean() for of in rows], intervals)
        covered.append(low <= rates.mean() <= high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.03)
