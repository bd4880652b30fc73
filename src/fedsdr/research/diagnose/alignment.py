"""How alike the answers of clients are, before and after rewriting (paper, Table 1).

Every measure sees a client as one vector, the sum of the vectors of its rows, so that a bootstrap
over rows draws weights and sums again.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import TfidfVectorizer

Vector = NDArray[np.float64]
RowVectors = Mapping[str, Any]  # client -> sparse (rows, features)


def jensen_shannon(a: Vector, b: Vector) -> float:
    """Return the Jensen-Shannon divergence of two count vectors, in bits: 0 the same, 1 disjoint.

    JS(p, q) = KL(p || m) / 2 + KL(q || m) / 2 with m = (p + q) / 2 and logarithms of base 2. It is
    the square of `scipy.spatial.distance.jensenshannon(p, q, base=2)`, which is the distance.
    Source: Lin, "Divergence measures based on the Shannon entropy", 1991.
    """
    p, q = a / a.sum(), b / b.sum()
    m = (p + q) / 2
    terms = [x[x > 0] * np.log2(x[x > 0] / m[x > 0]) for x in (p, q)]
    return max(0.0, float(terms[0].sum() + terms[1].sum()) / 2)


def cosine(a: Vector, b: Vector) -> float:
    """Return a.b / (|a| |b|), and 0 where one is zero."""
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else 0.0


def token_rows(
    raw: Mapping[str, Sequence[Sequence[int]]], rewritten: Mapping[str, Sequence[Sequence[int]]]
) -> tuple[RowVectors, RowVectors]:
    """Return each client's token counts, a row a row, from the token ids of its rows."""
    seen = {
        token for kind in (raw, rewritten) for rows in kind.values() for r in rows for token in r
    }
    columns = {token: i for i, token in enumerate(sorted(seen))}

    def counts(rows: Sequence[Sequence[int]]) -> csr_array:
        at = [i for i, row in enumerate(rows) for _ in row]
        ids = [columns[token] for row in rows for token in row]
        return csr_array((np.ones(len(ids)), (at, ids)), shape=(len(rows), len(columns)))

    first, second = ({c: counts(rows) for c, rows in kind.items()} for kind in (raw, rewritten))
    return first, second


def tfidf_rows(
    raw: Mapping[str, Sequence[str]], rewritten: Mapping[str, Sequence[str]]
) -> tuple[RowVectors, RowVectors]:
    """Return each client's TF-IDF vectors of its texts: one vocabulary and one idf for all of them.

    scikit-learn's definition: word counts of a text times ln((1 + n) / (1 + df)) + 1, each text of
    Euclidean length 1. Words are runs of letters and digits, lower case, of any length.
    """
    vectorizer = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b")
    vectorizer.fit([text for kind in (raw, rewritten) for rows in kind.values() for text in rows])
    first, second = (
        {c: csr_array(vectorizer.transform(rows)) for c, rows in kind.items()}
        for kind in (raw, rewritten)
    )
    return first, second


def compare(
    raw: RowVectors,
    rewritten: RowVectors,
    measure: Callable[[Vector, Vector], float],
    seed: int,
    resamples: int = 300,
) -> dict[str, Any]:
    """Return a measure for every pair of clients and its mean over pairs, raw and rewritten.

    Intervals are 95 % bootstrap intervals over the rows of each client, the same rows drawn for raw
    and rewritten, moved so that the mean of the draws is the value: a draw has fewer distinct rows
    and words than the rows themselves, so that all its divergences are too large.
    """
    clients = list(raw)
    pairs = list(combinations(clients, 2))
    draw = np.random.default_rng(seed)

    def measured(weights: Mapping[str, Vector]) -> Vector:
        """(raw, rewritten, their difference) x (mean, pairs...)"""
        values = []
        for rows in (raw, rewritten):
            vectors = {c: weights[c] @ rows[c] for c in clients}
            each = [measure(vectors[a], vectors[b]) for a, b in pairs]
            values.append([float(np.mean(each)), *each])
        return np.array([*values, np.subtract(values[1], values[0])])

    sizes = {c: raw[c].shape[0] for c in clients}
    point = measured({c: np.ones(n) for c, n in sizes.items()})
    drawn = np.array([
        measured({c: draw.multinomial(n, np.full(n, 1 / n)).astype(float)
                  for c, n in sizes.items()})
        for _ in range(resamples)
    ])  # fmt: skip
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0) + point - drawn.mean(axis=0)
    rows = [sum(sizes.values()), *(sizes[a] + sizes[b] for a, b in pairs)]
    names = ["mean", *(f"{a} / {b}" for a, b in pairs)]
    return {
        kind: {
            name: {
                "value": float(point[i, j]),
                "interval": [float(low[i, j]), float(high[i, j])],
                "rows": rows[j],
            }
            for j, name in enumerate(names)
        }
        for i, kind in enumerate(("raw", "rewritten", "change"))
    }


def divergence_at_equal_tokens(
    raw: RowVectors, rewritten: RowVectors, seed: int, draws: int = 20
) -> dict[str, Any]:
    """Return the mean divergence over pairs when every client has the same number of tokens.

    Two samples of one distribution diverge the more the fewer tokens they have; rewrites are
    longer, so they would look aligned by that alone. Here the tokens of every client and kind are
    a random part, as large as the smallest of all, the mean over `draws` parts.
    """
    rng = np.random.default_rng(seed)
    totals = {
        kind: {c: np.asarray(x.sum(axis=0)).astype(np.int64) for c, x in rows.items()}
        for kind, rows in (("raw", raw), ("rewritten", rewritten))
    }
    tokens = min(int(x.sum()) for of_kind in totals.values() for x in of_kind.values())
    found: dict[str, Any] = {"tokens a client": tokens}
    for kind, of_kind in totals.items():
        values = []
        for _ in range(draws):
            parts = [
                rng.multivariate_hypergeometric(x, tokens, method="marginals").astype(np.float64)
                for x in of_kind.values()
            ]
            values += [jensen_shannon(a, b) for a, b in combinations(parts, 2)]
        rows = sum(x.shape[0] for x in raw.values())
        found[kind] = {"mean": {"value": float(np.mean(values)), "rows": rows}}
    return found
