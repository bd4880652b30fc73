from itertools import combinations

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer, TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from fedsdr.research.diagnose.alignment import (
    compare,
    cosines,
    divergence_at_equal_tokens,
    divergences,
    row_vectors,
)

RAW = {
    "bank": ["the loan has a rate of 5 percent", "Rates rise.", "a loan is a debt"],
    "clinic": ["the patient takes 3 tablets", "Take rest, take water."],
    "school": ["the sum is 12", "a triangle has three sides", "7", "x is 4"],
}
NEW = {
    client: [f"Here is the answer to the question: {text}" for text in texts]
    for client, texts in RAW.items()
}
CLIENTS = list(RAW)
PAIRS = [(a, b) for i, a in enumerate(CLIENTS) for b in CLIENTS[i + 1 :]]


def ids(texts):
    """Letters as tokens."""
    return {client: [[ord(c) for c in text] for text in rows] for client, rows in texts.items()}


def token_rows(raw, rewritten):
    return row_vectors(CountVectorizer(analyzer=list, dtype=np.int64), raw, rewritten)


def tfidf_rows(raw, rewritten):
    return row_vectors(TfidfVectorizer(token_pattern=r"(?u)\b\w+\b"), raw, rewritten)


def divergence(a, b):
    return divergences(np.array([a, b], dtype=float))[0]


def test_divergence_is_the_square_of_scipys_distance_in_bits():
    rng = np.random.default_rng(0)
    vectors = rng.integers(0, 5, size=(5, 40)).astype(float)
    wanted = [jensenshannon(a, b, base=2) ** 2 for a, b in combinations(vectors, 2)]
    np.testing.assert_allclose(divergences(vectors), wanted, atol=1e-9)


def test_a_divergence_worked_by_hand():
    # p = (1, 0), q = (1/2, 1/2), m = (3/4, 1/4).
    wanted = (np.log2(4 / 3) + (np.log2(2 / 3) + np.log2(2)) / 2) / 2
    assert divergence([4, 0], [5, 5]) == pytest.approx(wanted)
    assert divergence([3, 0], [0, 7]) == pytest.approx(1)


@pytest.mark.parametrize("by", [1, 2, 7, 1 + 1e-9])
def test_the_divergence_of_equal_distributions_is_zero_although_scipy_may_say_nan(by):
    counts = np.random.default_rng(0).random(2000)
    assert divergence(counts, by * counts) == pytest.approx(0, abs=1e-12)


def test_the_cosine_with_a_client_without_words_is_zero():
    found = cosines(np.array([[1.0, 2], [2, 4], [0, 0]]))
    np.testing.assert_allclose(found, [1, 0, 0])


def test_divergence_of_clients_is_scipys_on_their_counts():
    found = compare(*token_rows(ids(RAW), ids(NEW)), divergences, seed=0, resamples=5)
    for kind, texts in (("raw", RAW), ("rewritten", NEW)):
        counts = {c: np.bincount([t for row in ids(texts)[c] for t in row], minlength=128)
                  for c in CLIENTS}  # fmt: skip
        wanted = [jensenshannon(counts[a], counts[b], base=2) ** 2 for a, b in PAIRS]
        measured = [found[kind][f"{a} / {b}"]["value"] for a, b in PAIRS]
        np.testing.assert_allclose(measured, wanted, atol=1e-9, rtol=0)
        assert found[kind]["mean"]["value"] == pytest.approx(np.mean(wanted), abs=1e-9)
    assert found["raw"]["bank / clinic"]["rows"] == 5
    assert found["raw"]["mean"]["rows"] == 9


def test_tfidf_cosine_of_clients_is_scikit_learns():
    found = compare(*tfidf_rows(RAW, NEW), cosines, seed=0, resamples=5)
    counter = CountVectorizer(token_pattern=r"(?u)\b\w+\b")
    every = [text for kind in (RAW, NEW) for rows in kind.values() for text in rows]
    weigh = TfidfTransformer().fit(counter.fit_transform(every))
    for kind, texts in (("raw", RAW), ("rewritten", NEW)):
        sums = {c: np.asarray(weigh.transform(counter.transform(texts[c])).sum(axis=0))
                for c in CLIENTS}  # fmt: skip
        wanted = [cosine_similarity(sums[a], sums[b])[0, 0] for a, b in PAIRS]
        measured = [found[kind][f"{a} / {b}"]["value"] for a, b in PAIRS]
        np.testing.assert_allclose(measured, wanted, atol=1e-9, rtol=0)
    change = found["rewritten"]["mean"]["value"] - found["raw"]["mean"]["value"]
    assert found["change"]["mean"]["value"] == pytest.approx(change, abs=1e-12)
    assert change > 0.2  # one and the same opening everywhere


def test_an_interval_holds_its_value_and_is_a_point_where_all_rows_are_the_same():
    found = compare(*token_rows(ids(RAW), ids(NEW)), divergences, seed=0, resamples=100)
    for kind in ("raw", "rewritten", "change"):
        low, high = found[kind]["mean"]["interval"]
        assert low < found[kind]["mean"]["value"] < high
    same = {"a": [[1, 2]] * 5, "b": [[1, 3]] * 4}
    found = compare(*token_rows(same, same), divergences, seed=0, resamples=20)
    assert found["raw"]["mean"]["value"] == pytest.approx(0.5)
    assert found["raw"]["mean"]["interval"] == pytest.approx([0.5, 0.5])
    assert found["change"]["mean"]["interval"] == pytest.approx([0, 0])


def test_more_text_of_one_distribution_looks_aligned_and_at_equal_tokens_does_not():
    rng = np.random.default_rng(0)

    def rows(tokens):
        return {c: rng.integers(0, 500, size=(10, tokens)).tolist() for c in "ab"}

    short, long = token_rows(rows(30), rows(900))
    plain = compare(short, long, divergences, seed=0, resamples=2)
    assert plain["change"]["mean"]["value"] < -0.2
    fair = divergence_at_equal_tokens(short, long, seed=0)
    assert fair["tokens a client"] == 300
    values = [fair[kind]["mean"]["value"] for kind in ("raw", "rewritten")]
    assert values[0] == pytest.approx(values[1], abs=0.05)
