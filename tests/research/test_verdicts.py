import itertools
import json

import pytest

from fedsdr.research.judge.verdicts import (
    CRITERIA,
    TIE,
    Ballot,
    ballots_of,
    notes_of,
    question_of,
    standings,
    table_of,
    verdict_of,
)
from fedsdr.types import Example, Turn

ROW = Example("r1", "Add {reference} and {labels}.", "1 and 2", "3 is the sum")
PAIR = Ballot("bank", "r1", ("ours", "theirs"))


def rows(count):
    return {"bank": [Example(f"r{i}", "q", "", "a") for i in range(count)]}


def said(winner):
    return dict.fromkeys(CRITERIA, winner)


def test_every_pair_is_shown_once_in_each_order():
    ballots = ballots_of(rows(1), ["x", "y", "z"], seed=0)
    orders = [ballot.order for ballot in ballots]
    assert sorted(orders) == sorted(itertools.permutations(["x", "y", "z"], 2))


def test_the_seed_draws_which_answer_is_shown_first():
    def firsts(seed):
        return [ballot.order[0] for ballot in ballots_of(rows(40), ["x", "y"], seed)[::2]]

    assert firsts(1) == firsts(1)
    assert firsts(1) != firsts(2)
    assert len(set(firsts(1))) == 2


def test_the_judge_sees_letters_in_place_of_the_models_names():
    ballot = Ballot("bank", "r1", ("fedsdr-run", "plain-run"))
    system, user = question_of(ballot, ROW, ["it is 3", 'so {"overall": "A"} {criteria}'])
    assert (system.role, user.role) == ("system", "user")
    text = system.content + user.content
    assert "fedsdr-run" not in text
    assert "plain-run" not in text
    assert "bank" not in text
    assert "<answer A>\nit is 3\n</answer A>" in text
    assert 'so {"overall": "A"} {criteria}' in text  # braces in an answer stay
    assert "user: Add {reference} and {labels}.\n\n1 and 2" in text
    assert "<reference>\n3 is the sum\n</reference>" in text
    assert all(f"- {criterion}: " in system.content for criterion in CRITERIA)


def test_a_conversation_is_shown_up_to_the_last_answer():
    row = Example(
        "r", "And now?", "", "gold", history=(Turn("user", "Hi"), Turn("assistant", "Yo"))
    )
    text = question_of(PAIR, row, ["x", "y"])[1].content
    assert "user: Hi\n\nassistant: Yo\n\nuser: And now?" in text


@pytest.mark.parametrize(
    ("reply", "overall"),
    [
        (json.dumps(said("A")), "ours"),
        (json.dumps(said("b")), "theirs"),
        (json.dumps(said("Tie")), TIE),
        (json.dumps(said("Answer B")), "theirs"),
        (json.dumps(said(" Answer B.")), "theirs"),
        ("```json\n" + json.dumps(said("A"), indent=1) + "\n```\nbecause {it} is", "ours"),
        ("first " + json.dumps(said("A")) + " no, " + json.dumps(said("B")), "theirs"),
        (json.dumps(said("A") | {"why": {"faithfulness": "B"}}), "ours"),
        ("Answer A is better.", None),
        ("", None),
        (json.dumps(said("C")), None),
        (json.dumps({"overall": "A"}), None),
        (json.dumps(said(["A"])), None),
        (json.dumps(said("A"))[:-1], None),
        ("{" * 5000, None),
    ],
)
def test_a_reply_is_a_verdict_only_if_it_names_a_winner_for_every_criterion(reply, overall):
    verdict = verdict_of(reply, PAIR)
    assert verdict == (None if overall is None else said(overall))


def test_letters_are_resolved_by_the_order_of_the_ballot():
    turned = Ballot("bank", "r1", PAIR.order[::-1])
    assert verdict_of(json.dumps(said("A")), turned) == said("theirs")


def votes_of(row, *winners, client="bank", who=("ours", "theirs")):
    orders = (who, who[::-1])
    return [
        (Ballot(client, row, order), winner and said(winner))
        for order, winner in zip(orders, winners, strict=True)
    ]


def test_win_rates_worked_by_hand():
    votes = [
        *votes_of("r1", "ours", "ours"),  # 1
        *votes_of("r2", "ours", TIE),  # 3/4: a win
        *votes_of("r3", "ours", "theirs"),  # 1/2: the order decided, a tie
        *votes_of("r4", "theirs", "theirs"),  # 0
        *votes_of("r1", TIE, TIE, client="clinic"),  # 1/2, and the clinic counts as the bank
    ]
    found = standings(votes, ["ours", "theirs"])
    overall = found["pairs"]["ours / theirs"]["overall"]
    assert overall["value"] == pytest.approx(((1 + 0.75 + 0.5 + 0) / 4 + 0.5) / 2)
    assert (overall["wins"], overall["ties"], overall["losses"]) == (2, 2, 1)
    assert overall["rows"] == 5
    assert overall["interval"] is None  # of the clinic's one row nothing can be drawn
    bank = standings(votes[:-2], ["ours", "theirs"])["pairs"]["ours / theirs"]["overall"]
    low, high = bank["interval"]
    assert 0 < low < bank["value"] < high < 1
    assert found["same verdict in both orders"] == pytest.approx(3 / 5)
    # Of the 7 votes that are no tie, "ours" was shown first and won 3, "theirs" 2 of the turned.
    assert found["winner was the first shown"] == pytest.approx(5 / 7)
    turned = standings(votes, ["theirs", "ours"])["pairs"]["theirs / ours"]["overall"]
    assert turned["value"] == pytest.approx(1 - overall["value"])


def test_a_judge_that_always_chooses_the_first_lets_nobody_win():
    ballots = ballots_of(rows(20), ["x", "y", "z"], seed=5)
    found = standings([(b, verdict_of(json.dumps(said("A")), b)) for b in ballots], ["x", "y", "z"])
    for of_pair in found["pairs"].values():
        assert of_pair["overall"]["value"] == 0.5
        assert of_pair["overall"]["ties"] == 20
    assert found["winner was the first shown"] == 1
    assert found["same verdict in both orders"] == 0


def test_a_row_with_an_unreadable_verdict_is_left_out_and_not_a_tie():
    votes = [*votes_of("r1", "ours", None), *votes_of("r2", "ours", "ours")]
    found = standings(votes, ["ours", "theirs"]) | {"judge": "j", "clients": {"bank": 2}}
    overall = found["pairs"]["ours / theirs"]["overall"]
    assert (overall["rows"], overall["value"], overall["ties"]) == (1, 1, 0)
    assert (found["asked"], found["unreadable"]) == (4, 1)
    assert "1 of 4 replies" in notes_of(found)[1]


def test_the_table_has_a_row_for_each_pair_also_for_one_without_verdicts():
    found = standings(votes_of("r1", "y", "y", who=("y", "z")), ["x", "y", "z"])
    header, *body = table_of(found).rows
    assert [row[0] for row in body] == ["x / y", "x / z", "y / z"]
    assert all(len(row) == len(header) for row in body)
    assert "no verdict" in body[0]
    assert "1.00" in body[2]
