"""How similar the clients' answers are, before and after rewriting (paper, Table 1).

A client is one vector, the sum of the vectors of its rows, so a bootstrap over rows only has to
draw row weights and sum again.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

Vectors = NDArray[np.float64]  # (clients, features)
RowVectors = Mapping[str, Any]  # client -> sparse (rows, features)
Pairwise = Callable[[Vectors], NDArray[np.float64]]  # one value per pair, as `combinations` orders


def divergences(vectors: Vectors) -> NDArray[np.float64]:
    """Return the Jensen-Shannon divergence in bits of each pair of count vectors, from 0 to 1.

    JS(p, q) = KL(p || m) / 2 + KL(q || m) / 2 with m = (p + q) / 2: the square of scipy's
    distance. Reference: Lin, "Divergence measures based on the Shannon entropy", 1991.
    """
    with np.errstate(invalid="ignore"):
        distances = pdist(vectors, "jensenshannon")  # nats^(1/2); NaN for equal vectors
    return np.nan_to_num(distances) ** 2 / np.log(2)


def cosines(vectors: Vectors) -> NDArray[np.float64]:
    """Return the cosine of each pair of vectors; 0 if one of them is zero."""
    return np.asarray(cosine_similarity(vectors)[np.triu_indices(len(vectors), 1)])


def alignment_of(
    raw: Mapping[str, Sequence[str]],
    rewritten: Mapping[str, Sequence[str]],
    tokenizer: Any,
    seed: int,
) -> dict[str, Any]:
    """Return how similar the texts of the clients are, in tokens of `tokenizer` and in words.

    TF-IDF is scikit-learn's, with words of any length and one idf for raw and rewritten texts.
    """
    tokens = [
        {c: tokenizer(rows, add_special_tokens=False)["input_ids"] for c, rows in texts.items()}
        for texts in (raw, rewritten)
    ]
    counts = row_vectors(CountVectorizer(analyzer=list, dtype=np.int64), *tokens)
    tfidf = row_vectors(TfidfVectorizer(token_pattern=r"(?u)\b\w+\b"), raw, rewritten)
    return {
        "Jensen-Shannon divergence": compare(*counts, divergences, seed),
        "Jensen-Shannon divergence at equal tokens": divergence_at_equal_tokens(*counts, seed),
        "TF-IDF cosine": compare(*tfidf, cosines, seed),
    }


def row_vectors(
    vectorizer: CountVectorizer, raw: Mapping[str, Any], rewritten: Mapping[str, Any]
) -> tuple[RowVectors, RowVectors]:
    """Fit a vectorizer to all rows, then return the vectors of each client's rows."""
    vectorizer.fit([row for kind in (raw, rewritten) for rows in kind.values() for row in rows])
    first, second = (
        {client: vectorizer.transform(rows) for client, rows in kind.items()}
        for kind in (raw, rewritten)
    )
    return first, second


def compare(
    raw: RowVectors, rewritten: RowVectors, measure: Pairwise, seed: int, resamples: int = 300
) -> dict[str, Any]:
    """Return a measure of every pair of clients and its mean over pairs: raw, rewritten, change.

    Intervals are 95 % bootstrap intervals over the rows of each client, with the same rows drawn
    for raw and rewritten. They are shifted so that the mean of the draws equals the value: a draw
    has fewer distinct rows than the data, which biases every divergence upwards.
    """
    sizes = {client: rows.shape[0] for client, rows in raw.items()}
    rng = np.random.default_rng(seed)

    def measured(weights: Mapping[str, Any]) -> NDArray[np.float64]:
        """Return an array (raw, rewritten, change) x (mean, pairs...)."""
        values = [
            measure(np.stack([weights[client] @ rows[client] for client in sizes]))
            for rows in (raw, rewritten)
        ]
        both = np.array([[np.mean(pairs), *pairs] for pairs in values])
        return np.stack([both[0], both[1], both[1] - both[0]])

    point = measured({client: np.ones(n) for client, n in sizes.items()})
    draws = np.array([
        measured({client: rng.multinomial(n, np.full(n, 1 / n)) for client, n in sizes.items()})
        for _ in range(resamples)
    ])  # fmt: skip
    ends = np.quantile(draws, [0.025, 0.975], axis=0) + point - draws.mean(axis=0)
    counts = {"mean": sum(sizes.values())}
    counts |= {f"{a} / {b}": sizes[a] + sizes[b] for a, b in combinations(sizes, 2)}
    return {
        kind: {
            name: {"value": point[i, j].item(), "interval": ends[:, i, j].tolist(), "rows": rows}
            for j, (name, rows) in enumerate(counts.items())
        }
        for i, kind in enumerate(("raw", "rewritten", "change"))
    }


def divergence_at_equal_tokens(
    raw: RowVectors, rewritten: RowVectors, seed: int, draws: int = 20
) -> dict[str, Any]:
    """Return the mean divergence over pairs with the same number of tokens for every client.

    Two samples of one distribution diverge less the longer they are, so longer rewrites look
    aligned by their length alone. Here the tokens of each client and kind are a random subset, as
    large as the smallest of all; the mean over `draws` subsets.
    """
    rng = np.random.default_rng(seed)
    totals = {
        kind: [np.asarray(x.sum(axis=0)).ravel() for x in rows.values()]
        for kind, rows in (("raw", raw), ("rewritten", rewritten))
    }
    tokens = min(int(counts.sum()) for clients in totals.values() for counts in clients)

    def drawn(clients: Sequence[NDArray[np.int64]]) -> float:
        subsets = [rng.multivariate_hypergeometric(c, tokens, method="marginals") for c in clients]
        return float(divergences(np.stack(subsets).astype(np.float64)).mean())

    rows = sum(x.shape[0] for x in raw.values())
    return {"tokens a client": tokens} | {
        kind: {"mean": {"value": np.mean([drawn(of) for _ in range(draws)]).item(), "rows": rows}}
        for kind, of in totals.items()
    }
