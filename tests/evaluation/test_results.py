import json
import math

import pytest

from fedsdr.evaluation.answer_audit import SIGNS, audit_answer
from fedsdr.evaluation.held_out import ClientScores, ExampleScore
from fedsdr.evaluation.model_tables import tables_of
from fedsdr.evaluation.results import (
    MODELS,
    ClientResult,
    build_results,
    table_of,
    to_markdown,
)

ANSWERS = ("It is 5 km.", "It is 7 km, so Paris says, by 8 roads.")


def scores(*rows, metric="rouge_l"):
    """Each row: (loss_sum, tokens, score)."""
    return ClientScores(
        metric,
        tuple(
            ExampleScore(
                id=f"row{i}",
                loss_sum=loss,
                tokens=tokens,
                score=score,
                new_tokens=3,
                finished=i == 0,
                audit=audit_answer("How far?", "It is 5 km.", ANSWERS[i], metric),
            )
            for i, (loss, tokens, score) in enumerate(rows)
        ),
    )


ANN = ClientResult(
    num_train=9,
    models={
        "base": scores((8.0, 2, 0.2), (12.0, 8, 0.4)),
        "global": scores((4.0, 2, 0.4), (6.0, 8, 0.6)),
        "client": scores((2.0, 2, 0.5), (3.0, 8, 0.9)),
    },
)
BOB = ClientResult(
    num_train=4,
    models={
        "base": scores((90.0, 30, 0.0), metric="exact_label"),
        "global": scores((60.0, 30, 1.0), metric="exact_label"),
        "client": scores((60.0, 30, 1.0), metric="exact_label"),
    },
)
COST = {"tokens": 1234, "seconds": {"smooth": 1.5}, "bytes_up": 10, "bytes_down": 20}


def build(clients=None, cost=COST):
    return build_results(
        method="fedsdr",
        algorithm="fedavg",
        seed=3,
        rounds=2,
        clients={"ann": ANN, "bob": BOB} if clients is None else clients,
        cost=cost,
    )


@pytest.fixture(scope="module")
def results():
    return build()


def test_a_client_has_its_counts_its_metric_and_three_models(results):
    ann = results["clients"]["ann"]
    assert (ann["num_train"], ann["num_test"], ann["metric"]) == (9, 2, "rouge_l")
    assert list(ann["models"]) == list(MODELS)
    base = ann["models"]["base"]
    assert base["loss"] == pytest.approx(2.0)  # 20 nats over 10 tokens
    assert base["score"] == pytest.approx(0.3)
    assert (base["tokens"], base["finished"]) == (10, 0.5)


def test_the_mean_counts_every_client_once(results):
    mean = results["mean"]
    assert mean["base"]["loss"] == pytest.approx((2.0 + 3.0) / 2)
    assert mean["base"]["score"] == pytest.approx((0.3 + 0.0) / 2)
    assert mean["client"]["loss"] == pytest.approx((0.5 + 2.0) / 2)
    assert mean["client"]["score"] == pytest.approx((0.7 + 1.0) / 2)


def test_the_weighted_mean_counts_rows_in_the_score_and_tokens_in_the_loss(results):
    mean = results["weighted_mean"]
    assert mean["base"]["loss"] == pytest.approx((10 * 2.0 + 30 * 3.0) / 40)
    assert mean["global"]["score"] == pytest.approx((2 * 0.5 + 1 * 1.0) / 3)


def test_every_score_stands_in_its_interval(results):
    entries = [
        *(model for client in results["clients"].values() for model in client["models"].values()),
        *results["mean"].values(),
        *results["weighted_mean"].values(),
    ]
    assert len(entries) == 12
    for entry in entries:
        low, high = entry["score_ci"]
        assert low <= entry["score"] <= high


def test_graded_scores_have_bootstrap_and_0_or_1_scores_wilson_intervals(results):
    # The mean of two draws from {0.2, 0.4} is 0.2, 0.3, 0.4 with chances 1/4, 1/2, 1/4.
    ann = results["clients"]["ann"]["models"]["base"]
    assert ann["score_ci"] == pytest.approx([0.2, 0.4])
    # One wrong answer of one (Wilson): [0, z^2 / (1 + z^2)].
    high = 1.96**2 / (1 + 1.96**2)
    bob = results["clients"]["bob"]["models"]["base"]
    assert bob["score_ci"] == pytest.approx([0.0, high], abs=1e-4)
    # Those of a mean add the distances of its clients in squares, by their weights.
    mean, weighted = (results[of]["base"]["score_ci"] for of in ("mean", "weighted_mean"))
    assert mean == pytest.approx([0.15 - 0.05, 0.15 + math.hypot(0.1, high) / 2], abs=1e-4)
    assert weighted == pytest.approx([0.2 - 0.2 / 3, 0.2 + math.hypot(0.2, high) / 3], abs=1e-4)


def test_a_client_whose_models_have_graded_scores_has_bootstrap_intervals_for_all_of_them():
    models = dict(ANN.models) | {"base": scores((8.0, 2, 0.0), (12.0, 8, 0.0))}
    base = build({"ann": ClientResult(9, models)})["clients"]["ann"]["models"]["base"]
    assert base["score_ci"] == [0.0, 0.0]


def test_each_example_stands_once_with_what_each_model_made_of_it(results):
    ann = results["examples"]["ann"]
    assert [row["id"] for row in ann] == ["row0", "row1"]
    found = dict(ann[1]["global"])
    assert found.pop("audit")["numbers"] == 2
    assert found == {
        "loss_sum": 6.0, "tokens": 8, "score": 0.6, "new_tokens": 3, "finished": False,
    }  # fmt: skip


def test_results_are_json_and_the_same_each_time(results):
    text = json.dumps(results, allow_nan=False)
    assert text == json.dumps(build(), allow_nan=False)
    assert json.loads(text) == results
    assert json.loads(text)["cost"] == COST


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_refused_with_the_name_of_its_client(bad):
    models = dict(ANN.models) | {"global": scores((bad, 2, 0.4), (6.0, 8, 0.6))}
    with pytest.raises(ValueError, match=r"clients\.ann\.models\.global\.loss"):
        build({"bob": BOB, "ann": ClientResult(9, models)})
    with pytest.raises(ValueError, match=r"cost\.seconds\.smooth"):
        build(cost={"seconds": {"smooth": bad}})


def test_a_client_without_supervised_tokens_is_refused_by_name():
    none = ClientResult(1, dict.fromkeys(MODELS, scores((0.0, 0, 0.0))))
    with pytest.raises(ValueError, match=r"clients\.eve\.models\.base\.loss is nan"):
        build({"ann": ANN, "eve": none})


def test_models_measured_on_other_rows_are_refused_by_the_name_of_the_client():
    for odd in (BOB.models["base"], scores((4.0, 2, 0.4)), scores((1, 2, 0), metric="exact_label")):
        with pytest.raises(ValueError, match="'ann'"):
            build({"ann": ClientResult(9, dict(ANN.models) | {"global": odd})})
    with pytest.raises(ValueError, match="'ann'"):
        build({"ann": ClientResult(9, {"base": ANN.models["base"]})})
    with pytest.raises(ValueError, match="'ann'"):
        build({"ann": ClientResult(9, dict.fromkeys(MODELS, scores()))})


def test_results_of_no_client_are_refused():
    with pytest.raises(ValueError, match="no clients"):
        build({})


def test_the_table_has_a_header_a_row_a_client_and_the_means(results):
    rows = table_of(json.loads(json.dumps(results)))
    assert rows[0] == [
        "client", "test rows", "metric",
        "base score ↑", "global score ↑", "client score ↑",
        "base loss ↓", "global loss ↓", "client loss ↓",
    ]  # fmt: skip
    assert rows[1] == [
        "ann", "2", "rouge_l",
        "0.300 [0.200, 0.400]", "0.500 [0.400, 0.600]", "0.700 [0.500, 0.900]",
        "2.000", "1.000", "0.500",
    ]  # fmt: skip
    assert [row[0] for row in rows] == ["client", "ann", "bob", "mean", "weighted mean"]
    assert rows[3][1:4] == ["3", "mixed", "0.150 [0.100, 0.550]"]
    assert {len(row) for row in rows} == {9}


def test_the_audit_of_a_client_is_over_its_answers_and_that_of_the_mean_over_clients(results):
    ann, bob = (results["clients"][name]["models"]["base"]["audit"] for name in ("ann", "bob"))
    assert (ann["unsupported"]["value"], ann["unsupported"]["rows"]) == (0.5, 2)  # 7, 8, Paris
    # Three in 14 words; a resample of the two rows has 0 of 8, 3 of 14, or 6 of 20.
    per_100 = ann["unsupported_per_100_words"]
    assert per_100["value"] == pytest.approx(300 / 14)
    assert per_100["interval"] == pytest.approx([0, 30])
    assert ann["length_ratio"]["value"] == pytest.approx(14 / 8)
    assert ann["unfinished"]["value"] == 0.5
    assert "wrong" not in ann
    assert (bob["wrong"]["value"], bob["wrong"]["rows"]) == (0, 1)
    mean, weighted = (results[of]["base"]["audit"] for of in ("mean", "weighted_mean"))
    assert mean["unsupported"]["value"] == pytest.approx((0.5 + 0) / 2)
    assert weighted["unsupported"]["value"] == pytest.approx(1 / 3)
    assert mean["unsupported"]["rows"] == 3
    assert mean["wrong"] == {
        "value": 0,
        "rows": 1,
        "interval": pytest.approx(bob["wrong"]["interval"]),
    }


def test_the_table_of_the_audit_says_which_direction_is_better(results):
    _, (_, rows) = tables_of(json.loads(json.dumps(results)))
    assert rows[0] == ["sign", "better", "base", "global", "client", "answers"]
    by_sign = {row[0]: row[1:] for row in rows[1:]}
    assert by_sign[SIGNS["unsupported"].title][0] == "↓"
    assert by_sign[SIGNS["unsupported"].title][1].startswith("0.250 [")
    assert by_sign[SIGNS["length_ratio"].title][0] == "→ 1"
    assert SIGNS["neutral"].title not in by_sign


def test_results_of_a_version_without_an_audit_have_no_table_of_it(results):
    old = json.loads(json.dumps(results))
    for model in MODELS:
        del old["mean"][model]["audit"]
    assert [rows for _, rows in tables_of(old)] == [table_of(old)]
    assert len(table_of(old)) == 5


def test_the_means_name_the_metric_that_all_clients_share():
    assert table_of(build({"ann": ANN, "eve": ANN}))[-1][2] == "rouge_l"


def test_markdown_escapes_the_bars_of_a_name():
    assert to_markdown([["client", "n"], ["a|b", "1"]]) == (
        "| client | n |\n| :-- | --: |\n| a\\|b | 1 |\n"
    )
