"""Whether the clients' answers mean alike, before and after rewriting, by sentence embeddings."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from fedsdr.evaluation.intervals import score_interval, weighted_mean
from fedsdr.models.sentence_embedding import Embed
from fedsdr.research.diagnose.alignment import Vectors, compare

Embeddings = Mapping[str, NDArray[np.float64]]  # client -> (rows, features), each of norm 1


def semantic_space(
    raw: Mapping[str, Sequence[str]],
    rewritten: Mapping[str, Sequence[str]],
    embed: Embed,
    seed: int,
) -> dict[str, Any]:
    """Return how alike the answers of the clients are in meaning, raw and rewritten.

    The cosine is the mean over all pairs of answers of two clients. The probe is a logistic
    regression that tells the clients apart, five-fold: its accuracy on rows that it was not fitted
    to, mean over clients. 1 / clients is chance: one space.
    """
    vectors = [{c: embed(rows) for c, rows in texts.items()} for texts in (raw, rewritten)]
    # Of rows of norm 1 / n, the product of two sums is the mean cosine of all pairs.
    shares = [{c: rows / len(rows) for c, rows in of.items()} for of in vectors]
    probe = {
        kind: {"mean": probe_accuracy(of, seed)}
        for kind, of in zip(("raw", "rewritten"), vectors, strict=True)
    }
    return {
        "sentence embedding cosine": compare(shares[0], shares[1], _products, seed),
        f"accuracy of a linear probe (chance {1 / len(raw):.2f})": probe,
    }


def probe_accuracy(vectors: Embeddings, seed: int) -> dict[str, Any]:
    """Return {value, interval, rows} of the probe; None where a client has fewer than two rows.

    The 95 % interval is over rows, as if the folds' probes were one.
    """
    sizes = [len(rows) for rows in vectors.values()]
    if min(sizes) < 2:
        return {"value": None, "rows": sum(sizes)}
    labels = np.repeat(np.arange(len(sizes)), sizes)
    folds = StratifiedKFold(min(5, *sizes), shuffle=True, random_state=seed % 2**32)
    probe = LogisticRegression(max_iter=1000, class_weight="balanced")
    right = cross_val_predict(probe, np.concatenate(list(vectors.values())), labels, cv=folds)
    of_client = [(right == labels)[labels == client].tolist() for client in range(len(sizes))]
    means = [float(np.mean(of)) for of in of_client]
    intervals = [score_interval(of, seed, binary=True) for of in of_client]
    value, interval = weighted_mean([1.0] * len(means), means, intervals)
    return {"value": value, "interval": interval, "rows": sum(sizes)}


def _products(vectors: Vectors) -> NDArray[np.float64]:
    return np.asarray((vectors @ vectors.T)[np.triu_indices(len(vectors), 1)])
