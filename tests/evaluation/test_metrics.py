import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from fedsdr.evaluation.answer_audit import audit_answer
from fedsdr.evaluation.metrics import METRICS, metric_for
from fedsdr.types import Example

TEXT = st.text(max_size=60) | st.sampled_from(
    [
        "positive",
        "The answer is 1,234.",
        "f(1, b='x')",
        "def f(x):\n    return x",
        "比赛很好。",
        "?!",
    ]
)
KINDS = st.sampled_from(sorted(METRICS))


def score(kind, gold, answer):
    return METRICS[kind].score(gold, answer)


def examples(*responses):
    return [Example(str(i), "say", "", response) for i, response in enumerate(responses)]


@given(KINDS, TEXT)
def test_the_gold_answer_itself_scores_one_by_every_metric(kind, gold):
    assert score(kind, gold, gold) == 1.0


@given(KINDS, TEXT, TEXT)
def test_a_score_is_between_zero_and_one(kind, gold, answer):
    assert 0.0 <= score(kind, gold, answer) <= 1.0


@given(KINDS.filter(lambda kind: kind != "text"), TEXT, TEXT)
def test_a_check_passes_or_fails_and_nothing_between(kind, gold, answer):
    assert score(kind, gold, answer) in (0.0, 1.0)


@pytest.mark.parametrize(
    "answer",
    ["positive", " Positive.\n", '"POSITIVE"', "**positive**", "Positive\nBecause it rose."],
)
def test_a_label_counts_whatever_its_case_space_and_punctuation(answer):
    assert score("label", "positive", answer) == 1.0


@pytest.mark.parametrize(
    ("label", "answer"),
    [
        ("positive", "\u201cPositive\u201d."),
        ("positive", "\u00abpositive\u00bb"),
        ("positive", "\u201epositive\u201c\u2026"),
        ("正面", "正面。"),
        ("正面", "「正面」"),
        ("正面", "正面\uff01"),
        ("सकारात्मक", "सकारात्मक।"),
        ("إيجابي", "إيجابي؟"),
        ("na\u00efve", "nai\u0308ve"),
        ("nai\u0308ve", "NA\u00cfVE"),
    ],
)
def test_a_label_counts_in_the_quotes_and_with_the_full_stop_of_its_script(label, answer):
    assert score("label", label, answer) == 1.0
    assert score("label", label, f"not {answer}") == 0.0


def test_an_accent_is_the_same_as_one_character_or_two():
    assert score("text", "un cafe\u0301 noir", "un caf\u00e9 noir") == 1.0
    audit = audit_answer("Who is E\u0301mile?", "na\u00efve", "nai\u0308ve", "exact_label")
    assert audit.wrong is False
    assert audit_answer("Who is E\u0301mile?", "", "I know \u00c9mile.", "rouge_l").names == 0


@pytest.mark.parametrize(
    "answer", ["", "positives", "not positive", "It is positive.", "neutral\npositive"]
)
def test_a_sentence_that_only_contains_the_label_is_wrong(answer):
    assert score("label", "positive", answer) == 0.0


def test_white_space_inside_a_label_is_one_space():
    assert score("label", "strongly  agree", "Strongly\tagree") == 1.0
    assert score("label", "strongly agree", "stronglyagree") == 0.0


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [("so 24 + 48 = 72", 1.0), ("#### 72.0", 1.0), ("72 clips, not 71", 0.0), ("none", 0.0)],
)
def test_only_the_final_number_counts(answer, wanted):
    assert score("number", "Natalia sold 24 + 48 = 72.\n#### 72", answer) == wanted


def test_without_a_number_in_the_gold_an_answer_without_one_does_not_agree_by_that():
    assert score("number", "no solution", "no idea") == 0.0


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("area(height=2, base=3)", 1.0),
        ("```python\narea(base = 3, height = 2)\n```", 1.0),
        ('{"name": "area", "arguments": {"height": 2, "base": 3}}', 1.0),
        ("area(base=2, height=3)", 0.0),
        ("area(base=3)", 0.0),
        ("volume(base=3, height=2)", 0.0),
        ("I would call area.", 0.0),
    ],
)
def test_a_call_is_equal_up_to_the_order_of_its_named_arguments(answer, wanted):
    assert score("call", "area(base=3, height=2)", answer) == wanted


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("def g():\n    return 2", 1.0),  # it parses; nothing says that it is right
        ("Here it is:\n```python\nx = 1\n```\nEnjoy!", 1.0),
        ("def g(:\n    return 2", 0.0),
        ("I cannot write this.", 0.0),
    ],
)
def test_code_has_to_parse(answer, wanted):
    assert score("code", "def f(x):\n    return x + 1", answer) == wanted


def test_rouge_l_of_a_hand_worked_pair():
    # "the cat on mat" is common: precision 4/5, recall 4/6, so F = 2 * 4 / (5 + 6).
    gold, answer = "The cat sat on the mat", "the cat lay on mat"
    assert score("text", gold, answer) == pytest.approx(8 / 11)


@given(st.text(st.characters(codec="ascii"), max_size=80), st.text(st.characters(codec="ascii")))
def test_rouge_l_is_that_of_rouge_score_on_ascii_text(gold, answer):
    wanted = RougeScorer(["rougeL"]).score(gold, answer)["rougeL"].fmeasure
    if any(char.isalnum() for char in gold):
        assert score("text", gold, answer) == pytest.approx(wanted)


def test_rouge_l_splits_a_name_at_its_underscores_as_rouge_score_does():
    assert score("text", "call load_base first", "load base") == pytest.approx(2 * 2 / (4 + 2))


def test_rouge_l_reads_words_of_any_script():
    assert score("text", "Кошка спит дома", "кошка ест дома") == pytest.approx(2 / 3)
    assert score("text", "猫在家", "猫不在") == pytest.approx(2 / 3)  # 猫 and 在 of three each


@pytest.mark.parametrize(
    ("responses", "name"),
    [
        (["positive", "negative", "positive", "positive"], "exact_label"),
        (["2 + 2 = 4\n#### 4", "The answer is 7."], "final_number"),
        (["area(base=3)", "volume(side=2)"], "function_call"),
        (["def f(x):\n    return x", "x = [i for i in range(3)]"], "code_parses"),
        (["A long and winding answer in words.", "Another one, of other words."], "rouge_l"),
    ],
)
def test_the_metric_is_chosen_by_what_the_responses_are(responses, name):
    assert metric_for(examples(*responses)).name == name


def test_code_of_other_languages_is_not_held_against_the_parser_of_python():
    sql = "SELECT name FROM cats WHERE age > 3;"
    js = "function f(x) {\n  return x;\n}"
    python = "def f(x):\n    return x"
    assert metric_for(examples(sql, js, python)).name == "rouge_l"
    assert metric_for(examples(sql, python, python)).name == "code_parses"
