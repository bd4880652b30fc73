from dataclasses import asdict

import pytest

from fedsdr.evaluation.answer_audit import SIGNS, audit_answer, measured_signs, sign_pair


def row_of(answer, gold="It is 5 km.", prompt="How far is Rome?", metric="rouge_l", finished=True):
    audit = audit_answer(prompt, gold, answer, metric)
    return {"finished": finished, "audit": asdict(audit)}


@pytest.mark.parametrize(
    ("sign", "answer", "wanted"),
    [
        ("unsupported", "Rome is 5 km away.", (0, 1)),
        ("unsupported", "It is 6 km.", (1, 1)),
        ("unsupported", "It is near Milan.", (1, 1)),
        ("unsupported_per_100_words", "It is 6 km from Milan, or 7.", (300, 8)),
        ("unsupported_per_100_words", "", (0, 1)),
        ("length_ratio", "It is five whole km by road.", (7, 4)),
        ("repeated", "so it is so it is so it is", (3, 6)),
        ("repeated", "yes", (0, 1)),
        ("fillers", "It is really very far", (2000, 5)),
        ("template", "Sure! It is 5 km.", (1, 1)),
        ("template", "It is 5 km.", (0, 1)),
        ("unfinished", "It is", (0, 1)),
        ("wrong", "It is 6 km.", (0, 0)),
        ("contradiction", "It is 5 km.", (0, 0)),
    ],
)
def test_a_sign_of_one_answer(sign, answer, wanted):
    assert sign_pair(sign, row_of(answer)) == wanted


@pytest.mark.parametrize(
    ("metric", "gold", "answer", "wanted"),
    [
        ("final_number", "2 + 3 = 5\n#### 5", "The answer is 5.", (0, 1)),
        ("final_number", "2 + 3 = 5\n#### 5", "The answer is 6.", (1, 1)),
        ("final_number", "2 + 3 = 5\n#### 5", "I do not know.", (0, 1)),  # states no number
        ("final_number", "none", "It is 6.", (0, 0)),
        ("exact_label", "positive", "Positive.", (0, 1)),
        ("exact_label", "positive", "negative\nbecause", (1, 1)),
        ("exact_label", "positive", "It is positive", (0, 1)),
        ("exact_label", "positive", "The text speaks of a company that grows.", (0, 1)),  # no label
        ("function_call", "f(a=1, b=2)", "f(b=2, a=1)", (0, 1)),
        ("function_call", "f(a=1, b=2)", "f(a=1, b=3)", (1, 1)),
        ("function_call", "f(a=1, b=2)", "Call f with one.", (0, 1)),
        ("code_parses", "x = 1", "x = 2", (0, 0)),
    ],
)
def test_an_answer_is_wrong_if_it_states_another_fact(metric, gold, answer, wanted):
    assert sign_pair("wrong", row_of(answer, gold, metric=metric)) == wanted


def test_a_value_is_the_ratio_of_the_sums_over_the_answers_to_which_a_sign_applies():
    rows = [
        row_of("It is 6 km."),
        row_of("It is 5 km, a walk of some hours for me.", finished=False),
        row_of("7", "It is 8.", metric="final_number"),
    ]
    found = measured_signs(rows, seed=0)
    per_100 = found["unsupported_per_100_words"]
    assert per_100["value"] == pytest.approx(100 * (1 + 0 + 1) / (4 + 11 + 1))
    assert per_100["rows"] == 3
    assert (found["wrong"]["value"], found["wrong"]["rows"]) == (1, 1)
    assert found["unfinished"]["value"] == pytest.approx(1 / 3)
    assert found.keys() == SIGNS.keys() - {"contradiction", "neutral"}
    for entry in found.values():
        low, high = entry["interval"]
        assert low <= entry["value"] <= high


def test_the_relation_that_an_nli_model_finds_is_counted():
    rows = [row_of("a"), row_of("b"), row_of("c")]
    for row, relation in zip(rows, ("neutral", "contradiction", "entailment"), strict=True):
        row["audit"]["relation"] = relation
    found = measured_signs(rows, seed=0)
    assert found["neutral"]["value"] == found["contradiction"]["value"] == pytest.approx(1 / 3)


def test_the_audit_of_an_answer_holds_numbers_and_no_text():
    audit = asdict(audit_answer("prompt", "gold", "secret Words of Ann", "rouge_l"))
    assert all(value is None or isinstance(value, int) for value in audit.values())


def test_rows_of_a_version_without_an_audit_have_no_signs():
    assert measured_signs([{"finished": True, "score": 1.0}], seed=0) == {}
