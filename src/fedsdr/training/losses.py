"""The losses that a phase may carry: values, each with the formula of one supervised token.

y is the gold token, q the distribution of the model in training, p that of a reference model.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedsdr.types import Branch, LocalSettings, LossKind, R, S

if TYPE_CHECKING:  # slow to import, and the values alone are often enough
    from torch import Tensor

# Log-probabilities q and p, (tokens, vocabulary), and labels -> the loss of each token, in nats.
TokenLosses = Callable[["Tensor", "Tensor", "Tensor", LocalSettings], "Tensor"]


@dataclass(frozen=True)
class Loss:
    """What a phase minimises: `token_losses` against a reference model, or -log q(y).

    `reference` are the branches of the reference model at the start of the phase, without dropout.
    () is the base: as it never changes, what it says is kept from round to round.
    """

    name: LossKind
    reference: tuple[Branch, ...] | None = None
    token_losses: TokenLosses | None = None


def anchored(q: "Tensor", p: "Tensor", labels: "Tensor", settings: LocalSettings) -> "Tensor":
    """Return (1/Z) CE(p, q) + (1 - 1/Z) CE(y, q) with Z = 1 + p(y) (e^beta - 1).

    It is the cross-entropy of q with the target softmax(log p + beta 1[y]), as in GIFT (arXiv
    2601.09233). beta = 0 makes the reference the target, a large beta the gold token.
    """
    z = 1 + at_labels(p, labels).exp() * math.expm1(settings.anchor_beta)
    return _cross_entropy(p, q) / z - (1 - 1 / z) * at_labels(q, labels)


def distilled(q: "Tensor", p: "Tensor", labels: "Tensor", settings: LocalSettings) -> "Tensor":
    """Return CE(y, q) + lambda KL(p || q), as in FedKD (arXiv 2108.13323)."""
    divergence = _cross_entropy(p, q) - _cross_entropy(p, p)
    return settings.distill_weight * divergence - at_labels(q, labels)


PLAIN = Loss("plain")
ANCHORED = Loss("anchored", (), anchored)
DISTILLED = Loss("distilled", (R, S), distilled)


def at_labels(log_probabilities: "Tensor", labels: "Tensor") -> "Tensor":
    """Return the log-probability of each label."""
    return log_probabilities.gather(-1, labels[:, None])[:, 0]


def _cross_entropy(p: "Tensor", q: "Tensor") -> "Tensor":
    """Return -sum p log q of log-probabilities."""
    return -(p.exp() * q).sum(-1)
