"""The measures of benchmarks/membership.py against scipy and scikit-learn."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score, roc_curve

PATH = Path(__file__).parents[1] / "benchmarks" / "membership.py"
SPEC = importlib.util.spec_from_file_location("membership", PATH)
membership = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(membership)


@pytest.fixture(params=range(5))
def scores(request):
    """Members and non-members with ties."""
    rng = np.random.default_rng(request.param)
    return rng.normal(0.7, 1, 40).round(1), rng.normal(0, 1, 100).round(1)


def test_the_auc_is_that_of_scikit_learn_and_of_the_rank_test(scores):
    members, others = scores
    labels = [1] * len(members) + [0] * len(others)
    found = membership.auc(members, others)
    assert found == pytest.approx(roc_auc_score(labels, np.concatenate(scores)))
    assert found == pytest.approx(mannwhitneyu(members, others).statistic / 40 / 100)


@pytest.mark.parametrize("fpr", [0.0, 0.01, 0.05, 0.5])
def test_the_true_positive_rate_is_the_largest_of_the_roc_curve_within_the_bound(scores, fpr):
    members, others = scores
    labels = [1] * len(members) + [0] * len(others)
    fprs, tprs, _ = roc_curve(labels, np.concatenate(scores), drop_intermediate=False)
    found = membership.tpr_at(fpr, members, others)
    assert found == pytest.approx(tprs[fprs <= fpr].max())


def test_the_interval_covers_the_auc_of_the_population_in_19_of_20_samples():
    # Normal scores one standard deviation apart: AUC = Phi(1 / sqrt 2) = 0.7602.
    rng, covered = np.random.default_rng(0), 0
    for seed in range(20):
        members, others = rng.normal(1, 1, 32), rng.normal(0, 1, 100)
        _, low, high = membership.success(members, others, seed, resamples=100)["auc"]
        covered += low <= 0.7602 <= high
    assert covered >= 16


def test_an_attack_sees_the_loss_of_a_row_beside_the_others_of_its_client():
    """By hand: clients with losses around 1 and 9, whose members the base model finds no easier."""
    easy = membership.Attacked(*map(np.array, ([0.0, 0.5], [1.0, 2.0], [1.0, 1.5], [1.0, 2.0])))
    hard = membership.Attacked(*map(np.array, ([8.0], [9.0, 10.0], [9.0], [9.0, 10.0])))
    members, others = membership.attack_scores([easy, hard], "loss")
    # Non-members have mean 1.5 and 9.5 and standard deviation 0.5.
    assert members.tolist() == [3.0, 2.0, 3.0]
    assert others.tolist() == [1.0, -1.0, 1.0, -1.0]
    members, others = membership.attack_scores([easy], "reference")
    assert members.tolist() == [1.0, 1.0]  # base loss - loss
    assert others.tolist() == [0.0, 0.0]
