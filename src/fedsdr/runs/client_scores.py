"""Scores of one model on the clients' test rows."""

import math
from collections.abc import Sequence

from fedsdr.config import Config
from fedsdr.errors import UserError
from fedsdr.evaluation.held_out import ClientScores, HeldOut, Infer, Losses, evaluate_on
from fedsdr.evaluation.metrics import metric_for
from fedsdr.types import Branch, ClientData, Generate


def client_scores(
    config: Config,
    clients: Sequence[ClientData],
    branches: tuple[Branch, ...],
    losses: Losses,
    generate: Generate,
    infer: Infer | None = None,
) -> dict[str, ClientScores]:
    """Return the scores of the model of these losses and answers on each client's test rows.

    UserError, which names the `branches`, if a loss is not finite. `infer`: see `evaluate_on`.
    """
    tests = {
        c.client_id: HeldOut(c.test, metric_for((*c.raw, *c.test)))  # by its kind of data
        for c in clients
    }
    scores = evaluate_on(
        tests,
        losses=losses,
        generate=generate,
        max_new_tokens=config.evaluation.max_new_tokens,
        seed=config.seed,
        infer=infer,
    )
    for name, measured in scores.items():
        if not math.isfinite(measured.loss):
            model = "+".join(("base", *branches))
            raise UserError(
                f"client '{name}': the loss of {model} on its test rows is not finite; "
                "run again with a lower train.lr"
            )
    return scores
