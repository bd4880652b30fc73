import pytest

from fedsdr.research.diagnose.rewrite_signs import (
    SIGNS,
    fillers_per_thousand,
    length_ratios,
    mean_of,
    signs_of,
)

CODE = "def f(x):\n    return print(x)"


@pytest.mark.parametrize(
    ("sign", "raw", "rewrite", "wanted"),
    [
        ("final number kept", "2 + 2 = 4\n#### 4", "Adding gives 4.", 1),
        ("final number kept", "2 + 2 = 4\n#### 4", "4 is what 2 and 3 give", 0),
        ("final number kept", "It is warm.", "It is 4.", None),
        ("numbers kept", "From 1990 to 1,995, 3 of 4.", "In 1990 and 1995, three.", 0.5),
        ("numbers kept", "None here.", "1", None),
        ("capitalised names kept", "Paris lies on the Seine, as Rouen does.", "The seine.", 0.5),
        ("capitalised names kept", "Cats sleep. Dogs bark.", "x", None),
        ("negation lost", "It isn't so.", "It is so.", 1),
        ("negation lost", "It isn't so.", "That is not so.", 0),
        ("negation lost", "It is so.", "It is not so.", None),
        ("negation new", "It is so.", "It is never so.", 1),
        ("negation new", "The note is nothing.", "The knot", None),
        ("label kept", "positive", "Positive.", 1),
        ("label kept", "positive", "The tone is positive.", 0),
        ("label kept", "This is a whole sentence of many words.", "x", None),
        ("label mentioned", "positive", "The tone is **positive**.", 1),
        ("label mentioned", "positive", "The positives are many.", 0),
        ("function call kept", "area(base=3, height=2)", "`area(height=2, base=3)`", 1),
        ("function call kept", "area(base=3, height=2)", "area(base=3)", 0),
        ("code still parses", CODE, f"Here:\n```python\n{CODE}\n```", 1),
        ("code still parses", CODE, "def f(x:\n    return", 0),
        ("code still parses", "f(1)", "f(", None),
        ("code calls the same names", CODE, "def g(y):\n    print(y)", 1),
        ("code calls the same names", CODE, "def g(y):\n    log.print(y)", 0),
        ("template phrase, raw", "Overall, it is good.", "", 1),
        ("template phrase, rewrite", "", "Sure! Here is the list.", 1),
        ("template phrase, rewrite", "", "One\nIn summary, two.", 1),
        ("template phrase, rewrite", "", "The overall sum is here.", 0),
    ],
)
def test_a_sign_of_one_answer(sign, raw, rewrite, wanted):
    assert SIGNS[sign](raw, rewrite) == wanted


def test_a_sign_counts_the_answers_to_which_it_applies():
    pairs = [
        ("positive", "positive"),
        ("negative", "It is bad."),
        ("A much longer answer, of many words.", ""),
    ]
    found = signs_of(pairs, seed=0)
    assert found["label kept"]["value"] == 0.5
    assert found["label kept"]["rows"] == 2
    assert found["final number kept"] == {"value": None, "rows": 0}
    low, high = found["label kept"]["interval"]
    assert low <= 0.5 <= high


def test_the_answer_itself_keeps_everything():
    for answer in ("positive", "The answer is 7.", CODE, "f(1)", "It is not in Rome or in 1990."):
        found = signs_of([(answer, answer)], seed=0)
        kept = [v["value"] for name, v in found.items() if "kept" in name or "code" in name]
        assert set(kept) <= {None, 1.0}
        assert found["negation lost"]["value"] in (None, 0.0)


def test_length_ratios_worked_by_hand():
    found = length_ratios([("a b", "a b c d"), ("a b c d", "a b"), ("a", "a b c")], seed=0)
    assert found["length ratio, mean"]["value"] == pytest.approx((2 + 0.5 + 3) / 3)
    assert found["length ratio, 50 % quantile"]["value"] == 2
    assert found["length ratio, all words"]["value"] == pytest.approx(9 / 7)
    assert length_ratios([], seed=0)["length ratio, all words"] == {"value": None, "rows": 0}


def test_fillers_are_counted_among_all_words():
    # "really", "very" and "just" of 8 words; "Verydry" is no filler.
    texts = ["It is really very good.", "Just Verydry: it"]
    assert fillers_per_thousand(texts) == {"value": pytest.approx(3000 / 8), "rows": 2}
    assert fillers_per_thousand([])["value"] is None


def test_a_mean_of_nothing_is_none():
    assert mean_of([], seed=0) == {"value": None, "rows": 0}
