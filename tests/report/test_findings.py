"""Sentences and warnings from numbers that are worked out by hand."""

import pytest

from fedsdr.report.findings import changes_by_client, findings, warnings


def results_of(losses, rows=30, finished=1.0, scores=(0.5, 0.5)):
    """results.json of clients whose every row has the base's loss 2 and the global model's."""
    models = ("base", "global", "client")
    clients, examples = {}, {}
    for name, loss in losses.items():
        value = {"base": (2.0, scores[0]), "global": (loss, scores[1]), "client": (loss, scores[1])}
        clients[name] = {
            "num_test": rows, "metric": "rouge_l",
            "models": {m: {"loss": value[m][0], "score": value[m][1], "finished": finished}
                       for m in models},
        }  # fmt: skip
        examples[name] = [
            {m: {"loss_sum": 2 * value[m][0], "tokens": 2, "score": value[m][1]} for m in models}
            for _ in range(rows)
        ]
    return {"seed": 0, "clients": clients, "examples": examples}


def a_round(*clients, refused=(), rows=9):
    return {"clients": [{"id": c, "num_examples": n} for c, n in clients],
            "refused": [{"id": c, "reason": "norm"} for c in refused]}  # fmt: skip


def test_a_fall_of_the_loss_is_said_with_its_interval():
    # Every row of a falls by 0.5 and of b by 1: the mean is 0.75, and rows do not differ.
    text = " ".join(findings(results_of({"a": 1.5, "b": 1.0})))
    assert "On 60 test rows of 2 clients, the global model's loss fell from 2.000 to 1.250" in text
    assert "(-0.750 [-0.750, -0.750])" in text
    assert "score (rouge_l) did not change beyond chance" in text
    assert "own models" not in text  # they are the global model


def test_a_change_whose_interval_holds_zero_is_not_called_one():
    results = results_of({"a": 1.99}, rows=4)
    shifts = (2.0, -2.0, 2.0, -2.08)  # of the sums over 2 tokens; their mean is the loss's change
    for row, shift in zip(results["examples"]["a"], shifts, strict=True):
        row["global"]["loss_sum"] = row["base"]["loss_sum"] + shift
    assert "loss did not change beyond chance (2.000 to 1.990" in findings(results)[0]


def test_the_change_of_a_client_is_weighted_by_tokens_as_its_loss_is():
    results = results_of({"a": 1.5})
    change = changes_by_client(results, "global", "loss")["a"]
    assert change.value == pytest.approx(-0.5)
    assert (change.low, change.high) == (pytest.approx(-0.5), pytest.approx(-0.5))


def test_results_without_rows_have_no_interval():
    results = results_of({"a": 1.5})
    del results["examples"]
    assert changes_by_client(results, "global", "loss")["a"].low is None
    assert "fell from 2.000 to 1.500 (-0.500)" in findings(results)[0]


def test_a_global_model_that_is_worse_than_the_base_and_few_rows_are_warned_of():
    lines = warnings(results_of({"a": 2.5, "b": 1.0}, rows=10), [], {})
    assert "Few test rows (fewer than 20): a (10), b (10)." in lines
    assert "The global model (R alone) is worse than the base in loss: a (+0.500)." in lines
    assert len(lines) == 2


def test_answers_cut_at_the_limit_are_warned_of():
    (line,) = warnings(results_of({"a": 1.0}, finished=0.25), [], {})
    assert line.endswith("a (75%).")


def test_refusals_a_client_that_dominates_and_unused_rewrites_are_warned_of():
    records = [a_round(("a", 60), ("b", 20), ("c", 20)), a_round(("a", 60), refused=["b"])]
    audit = {"clients": {"a": {"answers": 9, "rewritten": 4}, "b": {"answers": 8, "rewritten": 4}}}
    assert warnings(None, records, audit) == [
        "1 of 5 updates were refused: b (1).",
        "a has 60% of the training rows.",
        "Most rewrites are not used: a (4 of 9 used).",
    ]


def test_a_run_with_nothing_to_warn_of_has_no_warnings():
    records = [a_round(("a", 10), ("b", 10), ("c", 10))]
    assert warnings(results_of({"a": 1.0}), records, {}) == []
