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
    tables_of,
    verdict_of,
)
from fedsdr.types import Example, Turn

ROW = Example("r1", "Add {reference} and {labels}.", "1 and 2", "3 is the sum")
PAIR = Ballot("bank", "r1", ("ours", "theirs"))


def rows(count):
    return {"bank": [Example(f"r{i}", "q", "", "a") for i in range(count)]}


def said(winner):
    return dict.fromkeys(CRITERIA, winner)


def test_every_pair_and_all_together_are_shown_in_both_orders():
    ballots = ballots_of(rows(1), ["x", "y", "z"], seed=0)
    orders = [ballot.order for ballot in ballots]
    for pair in itertools.permutations(["x", "y", "z"], 2):
        assert orders.count(pair) == 1
    both = [order for order in orders if len(order) == 3]
    assert len(both) == 2
    assert both[0] == both[1][::-1]
    assert len(ballots_of(rows(1), ["x", "y"], seed=0)) == 2


def test_the_seed_alone_decides_who_comes_first():
    def firsts(seed):
        return [ballot.order[0] for ballot in ballots_of(rows(40), ["x", "y", "z"], seed)[6::8]]

    assert firsts(1) == firsts(1)
    assert firsts(1) != firsts(2)
    assert len(set(firsts(1))) == 3


def test_the_judge_reads_the_answers_by_letter_and_never_a_name():
    ballot = Ballot("bank", "r1", ("fedsdr-run", "plain-run"))
    system, user = question_of(ballot, ROW, ["it is 3", 'so {"overall": "A"} {criteria}'])
    assert (system.role, user.role) == ("system", "user")
    text = system.content + user.content
    assert "fedsdr-run" not in text
    assert "plain-run" not in text
    assert "bank" not in text
    assert "<answer A>\nit is 3\n</answer A>" in text
    assert 'so {"overall": "A"} {criteria}' in text  # what was filled in is left as it is
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
def test_a_reply_is_a_verdict_only_if_it_names_a_winner_by_every_criterion(reply, overall):
    verdict = verdict_of(reply, PAIR)
    assert verdict == (None if overall is None else said(overall))


def test_the_letters_are_those_of_the_order_that_was_shown():
    turned = Ballot("bank", "r1", PAIR.order[::-1])
    assert verdict_of(json.dumps(said("A")), turned) == said("theirs")


def votes_of(row, *winners, client="bank", who=("ours", "theirs")):
    orders = (who, who[::-1])
    return [
        (Ballot(client, row, order), winner and said(winner))
        for order, winner in zip(orders, winners, strict=True)
    ]


def test_a_win_rate_is_worked_out_by_hand():
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
    assert found["winners"] == {}
    assert found["same verdict in both orders"] == pytest.approx(3 / 5)
    # Of the 7 votes that are no tie, "ours" was shown first and won 3, "theirs" 2 of the turned.
    assert found["winner was the first shown"] == pytest.approx(5 / 7)
    turned = standings(votes, ["theirs", "ours"])["pairs"]["theirs / ours"]["overall"]
    assert turned["value"] == pytest.approx(1 - overall["value"])


def test_a_judge_that_always_takes_the_first_makes_nobody_win():
    ballots = ballots_of(rows(20), ["x", "y", "z"], seed=5)
    found = standings([(b, verdict_of(json.dumps(said("A")), b)) for b in ballots], ["x", "y", "z"])
    for of_pair in found["pairs"].values():
        assert of_pair["overall"]["value"] == 0.5
        assert of_pair["overall"]["ties"] == 20
    assert found["winner was the first shown"] == 1
    assert found["same verdict in both orders"] == 0


def test_the_winners_share_is_of_those_votes_alone_where_all_were_shown():
    who = ("x", "y", "z")
    votes = [
        *votes_of("r1", "x", "x", who=who),
        *votes_of("r2", "y", TIE, who=who),
        *votes_of("r1", "z", "z", who=("y", "z")),  # a pair: it counts for no share
    ]
    found = standings(votes, who)
    shares = {name: of["overall"]["value"] for name, of in found["winners"].items()}
    assert shares == {"x": 0.5, "y": 0.25, "z": 0, TIE: 0.25}
    assert found["pairs"]["y / z"]["overall"]["value"] == 0
    assert found["pairs"]["x / y"]["overall"]["value"] is None
    found |= {"judge": "j", "clients": {"bank": 2}}
    for _, body in tables_of(found):
        assert all(len(row) == len(body[0]) for row in body)
    assert any("no verdict" in row for row in tables_of(found)[0][1])


def test_what_is_no_verdict_is_no_tie_and_its_row_is_left_out():
    votes = [*votes_of("r1", "ours", None), *votes_of("r2", "ours", "ours")]
    found = standings(votes, ["ours", "theirs"]) | {"judge": "j", "clients": {"bank": 2}}
    overall = found["pairs"]["ours / theirs"]["overall"]
    assert (overall["rows"], overall["value"], overall["ties"]) == (1, 1, 0)
    assert (found["asked"], found["unreadable"]) == (4, 1)
    assert "1 of 4 replies" in notes_of(found)[1]
