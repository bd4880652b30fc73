"""All answers as points of a plane, near each other where their words are alike (paper, Fig. 1)."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.sparse import vstack
from sklearn.decomposition import TruncatedSVD
from sklearn.manifold import TSNE
from sklearn.preprocessing import normalize

from fedsdr.research.diagnose.alignment import tfidf_rows

DIMENSIONS = 50  # that t-SNE starts from, as is usual
PERPLEXITY = 30.0

Points = dict[str, list[list[float]]]  # client -> (x, y) of each of its answers


def landscape(
    raw: Mapping[str, Sequence[str]], rewritten: Mapping[str, Sequence[str]], seed: int
) -> dict[str, Points]:
    """Return a point for every answer, raw and rewritten in one plane: kind -> client -> points.

    TF-IDF vectors of one idf, their first 50 singular directions, each answer at Euclidean length
    1, then t-SNE with perplexity 30, or a third of the answers where they are few. Only who is
    whose neighbour means anything: axes, distances between groups and their sizes do not.
    Source: van der Maaten and Hinton, "Visualizing data using t-SNE", 2008.
    """
    vectors = dict(zip(("raw", "rewritten"), tfidf_rows(raw, rewritten), strict=True))
    blocks = [(kind, c, rows) for kind, clients in vectors.items() for c, rows in clients.items()]
    x = vstack([rows for _, _, rows in blocks]).tocsr()
    if x.shape[1] > DIMENSIONS:
        x = TruncatedSVD(min(DIMENSIONS, *x.shape), random_state=seed % 2**32).fit_transform(x)
    else:
        x = x.toarray()
    x = normalize(x)
    # Principal components to start from need two directions in which the answers differ.
    differ = np.linalg.matrix_rank(x - x.mean(axis=0)) >= 2
    plane = TSNE(
        perplexity=min(PERPLEXITY, (len(x) - 1) / 3),
        init="pca" if differ else "random",
        random_state=seed % 2**32,
    ).fit_transform(x)
    found: dict[str, Points] = {kind: {} for kind in vectors}
    start = 0
    for kind, client, rows in blocks:
        end = start + rows.shape[0]
        found[kind][client] = [[round(float(v), 3) for v in point] for point in plane[start:end]]
        start = end
    return found
