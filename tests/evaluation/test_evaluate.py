import math
from dataclasses import replace

import pytest

from fedsdr.evaluation.held_out import ClientScores, HeldOut, evaluate_on
from fedsdr.evaluation.metrics import METRICS
from fedsdr.types import Example, Generation, Turn

TEST = [
    Example("a", "Is it good?", "shares rose", "yes"),
    Example("b", "And this?", "shares fell", "no"),
    Example("c", "Now?", "", "no", history=(Turn("user", "Then?"), Turn("assistant", "maybe"))),
]
ANSWERS = {"a": "Yes.", "b": "private words", "c": "no"}
LOSSES = {"a": (1.0, 2), "b": (9.0, 3), "c": (2.0, 7)}


def run(test=TEST, answers=ANSWERS, losses=LOSSES, asked=None):
    def generate(requests, decoding):
        if asked is not None:
            asked.extend((request, decoding) for request in requests)
        for request in reversed(requests):  # answers come in any order
            row = request.id.removeprefix("bank/")
            if row in answers:
                yield Generation(request.id, answers[row], row != "b", 10, 4)

    scores = evaluate_on(
        {"bank": HeldOut(tuple(test), METRICS["label"])},
        losses=lambda rows: [losses[row.id] for row in rows],
        generate=generate,
        max_new_tokens=32,
        seed=5,
    )
    return scores["bank"]


def test_each_answer_is_scored_against_its_own_row_whatever_the_order():
    scores = run()
    assert [(row.id, row.score) for row in scores.rows] == [("a", 1.0), ("b", 0.0), ("c", 1.0)]
    assert [(row.loss_sum, row.tokens) for row in scores.rows] == [(1.0, 2), (9.0, 3), (2.0, 7)]
    assert scores.metric == "exact_label"


def test_the_loss_is_a_mean_over_tokens_and_the_score_one_over_rows():
    scores = run()
    assert scores.tokens == 12
    assert scores.loss == pytest.approx((1.0 + 9.0 + 2.0) / 12)
    assert scores.score == pytest.approx(2 / 3)
    assert scores.finished == pytest.approx(2 / 3)


def test_the_text_of_an_answer_is_not_kept():
    assert "private words" not in repr(run())


def test_decoding_is_greedy_and_seeded_for_each_row():
    asked = []
    run(asked=asked)
    assert {(d.temperature, d.max_new_tokens) for _, d in asked} == {(0.0, 32)}
    assert len({request.seed for request, _ in asked}) == len(TEST)


def test_a_conversation_is_answered_at_its_last_turn_with_the_gold_turns_before():
    asked = []
    run(asked=asked)
    a, _, c = [request.turns for request, _ in asked]
    assert a[-1].role == "user"
    assert "Is it good?" in a[-1].content
    assert "shares rose" in a[-1].content
    assert [(turn.role, turn.content) for turn in c if turn.role != "system"] == [
        ("user", "Then?"),
        ("assistant", "maybe"),
        ("user", "Now?"),
    ]


def test_without_a_supervised_token_the_loss_is_not_a_number():
    scores = run(losses={"a": (0.0, 0), "b": (0.0, 0), "c": (0.0, 0)})
    assert math.isnan(scores.loss)
    assert scores.score == pytest.approx(2 / 3)


def test_rows_of_all_clients_go_through_the_model_at_once_and_are_scored_by_their_own_metric():
    tests = {
        "bank": HeldOut((TEST[0],), METRICS["label"]),
        "clinic": HeldOut((replace(TEST[0], response="it is 7"),), METRICS["number"]),
    }
    batches = []

    def generate(requests, _):
        batches.append([request.id for request in requests])
        for request in requests:
            yield Generation(request.id, "yes" if "bank" in request.id else "7.0", True, 1, 1)

    def losses(rows):
        return [(float(i), i + 1) for i, _ in enumerate(rows)]

    scores = evaluate_on(tests, losses=losses, generate=generate, max_new_tokens=4, seed=0)
    assert batches == [["bank/a", "clinic/a"]]
    assert [scores[name].score for name in tests] == [1.0, 1.0]
    assert [(s.rows[0].loss_sum, s.rows[0].tokens) for s in scores.values()] == [(0.0, 1), (1.0, 2)]
    assert [s.metric for s in scores.values()] == ["exact_label", "final_number"]


def test_no_rows_a_missing_answer_or_a_double_id_fail_loudly():
    with pytest.raises(ValueError, match="no test rows"):
        run(test=[])
    with pytest.raises(ValueError, match="do not match the ids"):
        run(answers={"a": "yes", "b": "no"})
    with pytest.raises(ValueError, match="do not match the ids"):
        run(test=[TEST[0], TEST[0]])


def test_a_loss_for_each_row_is_required():
    with pytest.raises(ValueError, match="zip"):
        evaluate_on(
            {"bank": HeldOut((TEST[0],), METRICS["label"])},
            losses=lambda rows: [],
            generate=lambda requests, _: iter([Generation("bank/a", "yes", True, 1, 1)]),
            max_new_tokens=4,
            seed=0,
        )


def test_rows_longer_than_others_weigh_more_in_the_loss():
    short, long = run().rows[0], run().rows[2]
    assert ClientScores("x", (short, long)).loss == pytest.approx(3.0 / 9)
