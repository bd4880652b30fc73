"""Transfer: what a model is worth on the test rows of its own client and of the others."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fedsdr.evaluation.held_out import ClientScores
from fedsdr.evaluation.intervals import ratio_interval, score_interval, weighted_mean

Matrix = Mapping[str, Mapping[str, ClientScores]]  # model -> client whose rows -> scores


def transfer_of(
    shared: Mapping[str, ClientScores], own: Matrix, seed: int, absent: Collection[str] = ()
) -> dict[str, Any]:
    """Return the matrix of losses and scores, and their means in own and in other domains.

    `shared` has the scores of the global model by client, `own` those of each client's own model.
    matrix: model -> client whose rows -> {loss, score, loss_ci, score_ci}. means: "global" over all
    clients; "client" over the own models, on their own client's rows and on those of the others,
    if there are any. Every client counts once, but those that are `absent` from the training are in
    the matrix alone. 95 % intervals are over test rows, of which those of one client that several
    models answer count as independent.
    """
    matrix = {
        model: {client: _entry(scores, seed) for client, scores in row.items()}
        for model, row in {"global": shared, **own}.items()
    }
    trained = {
        model: {client: entry for client, entry in row.items() if client not in absent}
        for model, row in matrix.items()
    }
    others = [[e for client, e in trained[name].items() if client != name] for name in own]
    return {
        "matrix": matrix,
        "means": {
            "global": _mean(list(trained["global"].values())),
            "client": {"own domain": _mean([matrix[name][name] for name in own])}
            | ({"other domains": _mean([_mean(of) for of in others])} if all(others) else {}),
        },
    }


def _entry(scores: ClientScores, seed: int) -> dict[str, Any]:
    values = [row.score for row in scores.rows]
    losses = [(row.loss_sum, float(row.tokens)) for row in scores.rows if row.tokens]
    return {
        "loss": scores.loss,
        "loss_ci": ratio_interval(losses, seed),
        "score": scores.score,
        "score_ci": score_interval(values, seed, binary=set(values) <= {0.0, 1.0}),
    }


def _mean(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for what in ("loss", "score"):
        values, intervals = ([e[key] for e in entries] for key in (what, f"{what}_ci"))
        found[what], found[f"{what}_ci"] = weighted_mean([1.0] * len(values), values, intervals)
    return found
