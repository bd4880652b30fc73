import numpy as np
import pytest
from scipy import stats

from fedsdr.distill.records import RewriteRecord
from fedsdr.research.diagnose.rewrite_signs import (
    SIGNS,
    fillers_per_thousand,
    mean_of,
    record_signs,
    signs_of,
)


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
        ("template phrase, raw", "Overall, it is good.", "", 1),
        ("template phrase, rewrite", "", "Sure! Here is the list.", 1),
        ("template phrase, rewrite", "", "One\nIn summary, two.", 1),
        ("template phrase, rewrite", "", "The overall sum is here.", 0),
        ("meta-phrase", "Rome", "The reference answer is Rome.", 1),
        ("meta-phrase", "Rome", "It is Rome.", 0),
        ("refused", "Rome", "As an AI model, I can't help with that.", 1),
        ("refused", "Rome", "It is Rome.", 0),
    ],
)
def test_a_sign_of_one_answer(sign, raw, rewrite, wanted):
    assert SIGNS[sign](raw, rewrite) == wanted


def test_a_sign_is_averaged_over_the_answers_to_which_it_applies():
    pairs = [("It is 4.", "4"), ("The answer is 5.", "The answer is 6."), ("A fine day.", "")]
    found = signs_of(pairs, seed=0)
    assert found["numbers kept"]["value"] == 0.5
    assert found["numbers kept"]["rows"] == 2
    assert found["capitalised names kept"] == {"value": None, "rows": 0}


def test_an_answer_compared_with_itself_keeps_everything():
    for answer in ("The answer is 7.", "It is not in Rome or in 1990.", "f(1)"):
        found = signs_of([(answer, answer)], seed=0)
        kept = [entry["value"] for name, entry in found.items() if "kept" in name]
        assert set(kept) <= {None, 1.0}
        assert found["length ratio, mean"]["value"] == 1


def test_length_ratios_worked_by_hand():
    found = signs_of([("a b", "a b c d"), ("a b c d", "a b"), ("a", "a b c")], seed=0)
    assert found["length ratio, mean"]["value"] == pytest.approx((2 + 0.5 + 3) / 3)
    assert found["length ratio, 50 % quantile"]["value"] == 2
    assert signs_of([], seed=0)["length ratio, mean"] == {"value": None, "rows": 0}


def test_fillers_are_counted_among_all_words():
    # "really", "very" and "just" of 8 words; "Verydry" is no filler.
    texts = ["It is really very good.", "Just Verydry: it"]
    assert fillers_per_thousand(texts) == {"value": pytest.approx(3000 / 8), "rows": 2}
    assert fillers_per_thousand([])["value"] is None


def test_rewrites_that_did_not_end_by_themselves_are_counted():
    def record(finished):
        return RewriteRecord(
            id="r", turn=0, instruction="", raw="a b", rewrite="a b", used="raw", reason="",
            family="general", seed=0, teacher="t", new_tokens=2, finished=finished,
        )  # fmt: skip

    found = record_signs([record(True), record(False), record(False), record(False)], seed=0)
    assert found["truncated"]["value"] == 0.75


def test_the_interval_of_a_share_is_wilsons_and_that_of_a_ratio_a_bootstrap():
    share = mean_of([1.0] * 9 + [0.0], seed=0)
    wilson = stats.binomtest(9, 10).proportion_ci(method="wilson")
    assert share["interval"] == pytest.approx([wilson.low, wilson.high])
    low, high = mean_of([0.5, 1.5, 2.5, 3.5], seed=0)["interval"]
    assert 0.5 <= low < np.mean([0.5, 1.5, 2.5, 3.5]) < high <= 3.5
    assert mean_of([], seed=0) == {"value": None, "rows": 0}
