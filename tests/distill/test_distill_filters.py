"""Each check on rewrites made for it, with SDFT's known mistakes among them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsdr.distill.filters import (
    FAMILY_CHECKS,
    FILTERS,
    Rewrite,
    breaks_code,
    changes_call,
    changes_label,
    changes_number,
    has_meta_phrase,
    has_other_script,
    is_empty,
    loops,
    refuses,
)


def sdft_reason(family, shown, raw, text, finished):
    return FILTERS["sdft"](Rewrite(family, shown, raw, text, finished))


LONG = "The river rises in the hills and runs past four old mills before it meets the sea. "


@given(
    st.sampled_from(list(FAMILY_CHECKS)),
    st.text(alphabet="ab1 .,\n(){}='`:йΩ", max_size=60),
    st.text(alphabet="ab1 .,\n(){}='`:йΩ", max_size=60),
)
def test_no_text_makes_the_filter_raise(family, raw, rewrite):
    assert isinstance(sdft_reason(family, raw, raw, rewrite, True), str)


@pytest.mark.parametrize(
    ("family", "answer"),
    [
        ("general", LONG),
        ("general", "I'm sorry, but I can't come. As an AI language model I have no legs."),
        ("general", "la la la la\n" * 8),
        ("maths", "3 + 4 = 7\nThe answer is 7."),
        ("code", "def f(x):\n    return helper(x)"),
        ("code", "SELECT name FROM people;"),
        ("classification", "Very positive"),
        ("functions", "area(base=3, unit='cm')"),
    ],
)
def test_a_rewrite_equal_to_the_raw_answer_is_never_refused(family, answer):
    assert sdft_reason(family, answer, answer, answer, True) == ""


@pytest.mark.parametrize("rewrite", ["", "  \n", "...", "``` ```"])
def test_nothing_said_is_empty(rewrite):
    assert is_empty("yes", rewrite) == "empty"
    assert sdft_reason("general", "yes", "yes", rewrite, True) == "empty"


def test_an_answer_of_punctuation_alone_may_stay_one():
    assert is_empty("!", "?") is None
    assert is_empty("!", " ") == "empty"


def test_an_unfinished_rewrite_is_truncated():
    assert sdft_reason("general", LONG, LONG, LONG, False) == "truncated"


@pytest.mark.parametrize(
    "rewrite",
    [
        "As the Reference Answer says, it rains.",
        "Your response is good.",
        "Here is my own response: it rains.",
        "Now it's your turn.",
        "Your turn: it rains.",
        "Here is the rewritten answer: it rains.",
        "In my own words, it rains.",
        "Here is a good answer:\n\nIt rains.",
    ],
)
def test_talk_about_answering_is_a_meta_phrase(rewrite):
    assert has_meta_phrase("It rains.", rewrite) == "meta-phrase"


@pytest.mark.parametrize("rewrite", ["It is your turn to play.", "She gave a quick response."])
def test_ordinary_words_are_no_meta_phrase(rewrite):
    assert has_meta_phrase("It rains.", rewrite) is None


def test_a_phrase_that_the_raw_answer_has_too_is_no_meta_phrase():
    assert (
        has_meta_phrase("Thank you for your response.", "We thank you for your response!") is None
    )


@pytest.mark.parametrize(
    "rewrite",
    [
        "I'm sorry, but I can't do that.",
        "I’m sorry, I cannot help.",  # noqa: RUF001
        "As an AI language model, I have no feelings.",
        "Unfortunately, I cannot provide medical advice.",
        "I am unable to answer.",
    ],
)
def test_declining_is_refused(rewrite):
    assert refuses("It rains.", rewrite) == "refused"


@pytest.mark.parametrize(
    "rewrite", ["I can't believe I got the job!", "I am sorry for your loss.", "I cannot swim."]
)
def test_ordinary_sadness_is_not_refused(rewrite):
    assert refuses("It rains.", rewrite) is None


@pytest.mark.parametrize(
    "rewrite",
    [
        "it is so " * 30,
        "He said so.\n" * 4 + LONG,
        LONG + "Bye. " * 12,
        LONG + "哈" * 12,
    ],
)
def test_saying_the_same_over_and_over_is_looping(rewrite):
    assert loops(LONG, rewrite) == "looping"


def test_lists_tables_and_songs_are_not_looping():
    assert loops(LONG, "\n".join(f"{i}. This plant is easy to care for." for i in range(3))) is None
    assert loops(LONG, "| a | b |\n|------------------|---|\n| 1000000000000 | 2 |") is None
    song = "Row, row, row your boat\n" * 5
    assert loops(song, song + "gently down the stream") is None


def test_letters_of_a_script_that_was_not_shown_are_found():
    assert has_other_script("What is it?", "Это дерево.") == "other script"
    assert has_other_script("Translate to Russian: дом", "Это дерево.") is None
    assert has_other_script("Area?", "The angle β is 30 degrees wide.") is None
    assert has_other_script("日本は島国です", "カメラ") is None


def test_a_label_stays_exactly_up_to_case_and_punctuation():
    assert changes_label("positive", " Positive.\n") is None
    assert changes_label("positive", "negative") == "label changed"
    assert changes_label("positive", "It is not positive") == "label changed"


@pytest.mark.parametrize(
    ("raw", "rewrite"),
    [
        ("The answer is 1,230.", "That makes 12 30"),
        ("no digits", "none here either"),
        ("The answer is 7.", "The answer is seven."),
        ("The answer is 72.", "She sold 72 in April.\nThe answer is 48."),
    ],
)
def test_final_numbers_must_be_there_and_equal(raw, rewrite):
    assert changes_number(raw, rewrite) == "number changed"


def test_the_same_final_number_in_other_clothes_is_accepted():
    assert changes_number("The answer is 1,230.", "So she has $1230.00 in all.") is None


def test_a_call_must_be_the_same_up_to_keyword_order():
    raw = "pay(to='Ann', sum=3)"
    assert changes_call(raw, "```python\npay(sum=3.0, to='Ann')\n```\nThis pays Ann.") is None
    assert changes_call(raw, "pay(to='Ann', sum='3')") == "call changed"
    assert changes_call(raw, "You should pay Ann 3.") == "call changed"


def test_code_must_parse_and_keep_its_names():
    raw = "def area(r):\n    return 3.14 * r * r"
    helped = "def area(r):\n    return math.pi * square(r)\n\ndef square(x):\n    return x * x"
    assert breaks_code(raw, f"Here:\n```python\nimport math\n{helped}\n```\nDone.") is None
    assert breaks_code(raw, "def area(r:\n    return") == "code broken"
    assert breaks_code(raw, "Multiply pi by the square of r.") == "code broken"
    assert breaks_code(raw, "def surface(r):\n    return 3.14 * r * r") == "code names changed"
    assert breaks_code(raw, "def area(r):\n    return compute_area(r)") == "code names changed"


def test_code_of_another_language_must_stay_code():
    raw = "SELECT name FROM people WHERE age > 3;"
    assert breaks_code(raw, "Use this query:\nSELECT name FROM people\nWHERE age > 3;") is None
    assert breaks_code(raw, "Write a query that lists the names.") == "code broken"


def test_only_the_checks_of_its_own_family_look_at_an_answer():
    assert sdft_reason("general", LONG, "The answer is 7.", "The answer is 8.", True) == ""
    assert (
        sdft_reason("maths", LONG, "The answer is 7.", "The answer is 8.", True) == "number changed"
    )
