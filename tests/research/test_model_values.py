import numpy as np
import pytest

from fedsdr.evaluation.answer_audit import SIGNS
from fedsdr.research.compare.comparison_table import tables_of
from fedsdr.research.compare.differences import Group, comparison_rows
from fedsdr.research.compare.model_values import measured_in, model_values


def entry(words, fillers=0, names=0):
    audit = {
        "words": words, "gold_words": 4, "prose_words": words, "numbers": 0, "names": names,
        "wrong": None, "grams": max(0, words - 3), "repeated": 0, "fillers": fillers,
        "template": False, "relation": None,
    }  # fmt: skip
    return {"loss_sum": 1.0, "tokens": 2, "score": 0.5, "finished": True, "audit": audit}


def results_of(*answers, drift=0.0):
    """One client; each answer: (words, fillers, names) of global and client, the base has none."""
    rows = [
        {"id": f"r{i}", "base": entry(4), "global": entry(*a), "client": entry(*a)}
        for i, a in enumerate(answers)
    ]
    kept = [[drift, 2 * drift, 10], [3 * drift, 0.0, 30]]
    return {
        "examples": {"ann": rows},
        "clients": {"ann": {"num_test": len(rows), "metric": "rouge_l"}},
        "mean": {"base": {"audit": {"fillers": {}, "unsupported": {}}}},
        "retention": {"rows": {"global": kept, "clients": {"ann": kept, "bob": kept}}},
        "cost": {"tokens": {}, "seconds": {}, "bytes_up": 0, "bytes_down": 0},
    }


def test_the_mean_of_the_values_of_rows_is_the_ratio_of_the_sums():
    results = results_of((10, 1, 0), (30, 0, 2), (5, 2, 0))
    values = model_values(results, "global", "fillers")["ann"]
    assert np.mean([v for v, _ in values.values()]) == pytest.approx(1000 * 3 / 45)
    assert {d for _, d in values.values()} == {1.0}
    # The linear part of what one row does to the ratio, by leaving it out (n large: infinitesimal).
    many = results_of(*[(10, 1, 0), (30, 0, 2)] * 500)
    values = [v for v, _ in model_values(many, "global", "fillers")["ann"].values()]
    without = 1000 * 499 / (10 * 499 + 30 * 500)
    assert values[0] - 1000 / 40 == pytest.approx(-999 * (without - 1000 / 40), rel=2e-3)


def test_the_drift_of_own_models_is_their_mean_and_that_of_the_base_nothing():
    results = results_of((1, 0, 0), drift=2.0)
    for model, wanted in (("base", 0), ("global", 8 / 40), ("client", 8 / 40)):
        [values] = model_values(results, model, "drift").values()
        assert np.mean([v for v, _ in values.values()]) == pytest.approx(wanted)


def test_a_comparison_pairs_the_signs_of_two_variants_on_the_same_rows():
    plain = results_of(*[(10, 1, 0), (20, 0, 1)] * 4, drift=1.0)
    other = results_of(*[(40, 0, 0), (20, 0, 0)] * 4, drift=3.0)
    groups = {Group("plain", "fedavg"): {(0, 0): plain}, Group("other", "fedavg"): {(0, 0): other}}
    assert measured_in(plain) == ["unsupported", "fillers", "drift", "rise"]
    rows = comparison_rows(groups, "plain")
    [row] = [r for r in rows if r["model"] == "global" and r["variant"] == "other"]
    assert row["unsupported"] == 0
    assert row["unsupported_difference"] == pytest.approx(-0.5)
    assert row["unsupported_difference_low"] < -0.5 < row["unsupported_difference_high"] <= 0
    assert row["drift_difference"] == pytest.approx((3 - 1) * 4 / 40)
    _, (_, (header, *body)) = tables_of({"rows": rows, "keys": []})
    assert header == ["measure", "variant", "model", "value", "value - baseline"]
    names = {line[0] for line in body}
    assert f"{SIGNS['fillers'].title} ↓" in names
    assert "drift, KL from the base ↓" in names


def test_runs_of_a_version_without_an_audit_are_compared_without_one():
    old = results_of((1, 0, 0))
    del old["retention"], old["mean"]
    for model in ("base", "global", "client"):
        del old["examples"]["ann"][0][model]["audit"]
    rows = comparison_rows({Group("plain", "fedavg"): {(0, 0): old}}, "plain")
    assert rows[0]["loss"] == 0.5
    assert len(tables_of({"rows": rows, "keys": []})) == 1
