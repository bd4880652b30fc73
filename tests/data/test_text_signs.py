import pytest

from fedsdr.data.text_signs import (
    has_template_phrase,
    names_in,
    prose_of,
    repeated_grams,
    unsupported_names,
    unsupported_numbers,
    words_of,
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("It's GOOD: 3.", ["it's", "good", "3"]),
        ("\u4eca\u65e5 ok", ["\u4eca", "\u65e5", "ok"]),
        ("", []),
    ],
)
def test_words_are_lower_case_and_a_chinese_character_is_one(text, wanted):
    assert words_of(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Paris lies on the Seine, as Rouen does.", ["Seine", "Rouen"]),
        ("Cats sleep. Dogs bark.", []),
        ("The Benefits of Regular Exercise\nWe met Ann.", ["Ann"]),  # a heading
        ("- **Plan the Meals Ahead:** So did Ann, as Bob did.", ["Ann", "Bob"]),
        ("New York, Paris and London.", ["York", "Paris", "London"]),
        ("Here I am.", []),
    ],
)
def test_a_name_is_a_capitalised_word_inside_a_sentence(text, wanted):
    assert names_in(text) == wanted


@pytest.mark.parametrize(
    ("answer", "source", "wanted"),
    [
        ("It takes 3 days and 40 km.", "a trip of 40 km", {3}),
        ("1. Eat.\n2) Sleep.\n**3.** Work\nStep 4: rest", "", set()),  # the numbers of a list
        ("3.5 litres", "", {3.5}),
        ("5 apples, 5 pears", "five of each", set()),
        ("-7", "7 below zero", set()),
        ("1,200 cars", "1200 cars", set()),
        ("```python\nx = 17\n```\nfor 8 rows\ny = f(19);", "", {8}),  # code is not prose
    ],
)
def test_a_number_that_nothing_before_it_has_is_unsupported(answer, source, wanted):
    assert {float(n) for n in unsupported_numbers(prose_of(answer), source)} == wanted


@pytest.mark.parametrize(
    ("answer", "source", "wanted"),
    [
        ("It is in Lyon, not in Paris.", "Where is paris?", {"lyon"}),
        ("It was Obama who won.", "Obama's year", set()),
        ("They are Americans.", "an American town", set()),
        ("The Market is a market.", "", set()),
    ],
)
def test_a_name_that_nothing_before_it_has_is_unsupported(answer, source, wanted):
    assert unsupported_names(prose_of(answer), source) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Sure! Here is the list.", True),
        ("One\nIn summary, two.", True),
        ("I hope this helps", True),
        ("The overall sum is here.", False),
    ],
)
def test_template_phrases(text, wanted):
    assert has_template_phrase(text) is wanted


def test_repeated_grams_worked_by_hand():
    # abcd, bcda, cdab, dabc, abcd: the last is the first once more.
    assert repeated_grams(list("abcdabcd")) == (1, 5)
    assert repeated_grams(["a"] * 6) == (2, 3)
    assert repeated_grams(["a", "b"]) == (0, 0)
