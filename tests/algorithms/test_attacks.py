"""2 of 8 clients attack: what each aggregation holds, and whom it leaves out."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from attacks import federate

sys.path.pop(0)

ROBUST = ("median", "trimmed-mean", "multi-krum")


@pytest.mark.parametrize("attack", ["sign-flipped", "scaled", "assembled"])
@pytest.mark.parametrize("rule", ROBUST)
def test_a_robust_rule_leaves_out_the_hostile_clients_alone(rule, attack):
    quiet, attacked = federate("mean", "none", rounds=3), federate(rule, attack, rounds=3)
    assert attacked.hostile_left_out == 2 * 3
    assert attacked.honest_left_out == 0
    assert attacked.loss == pytest.approx(quiet.loss, rel=0.1)


@pytest.mark.parametrize("attack", ["sign-flipped", "scaled", "assembled"])
def test_the_mean_holds_no_attack(attack):
    quiet, attacked = federate("mean", "none", rounds=3), federate("mean", attack, rounds=3)
    assert attacked.loss > 1.2 * quiet.loss


@pytest.mark.parametrize("rule", ROBUST)
def test_without_an_attack_an_honest_minority_is_left_out_and_learns_less(rule):
    mean, robust = (federate(r, "none", minority=2, rounds=3) for r in ("mean", rule))
    assert robust.honest_left_out >= 4
    assert robust.minority_loss > mean.minority_loss
