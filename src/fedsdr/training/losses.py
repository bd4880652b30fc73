"""The losses that a phase may carry: values, each with the formula of one supervised token.

y is the gold token, q the distribution of the model in training, p that of a reference model.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fedsdr.models.chunked_losses import chunked_losses, logits_of
from fedsdr.models.packing import label_states, labels_of
from fedsdr.models.two_branch import BranchedModel
from fedsdr.training.optimizer_step import PackLoss
from fedsdr.types import Branch, LocalSettings, LossKind, R, S, TokenRow

# Log-probabilities q and p, (tokens, vocabulary), and labels -> the loss of each token, in nats.
TokenLosses = Callable[[Tensor, Tensor, Tensor, LocalSettings], Tensor]
States = Mapping[TokenRow, Tensor]  # last hidden state before each label of a row, (labels, size)


@dataclass(frozen=True)
class Loss:
    """What a phase minimises: `token_losses` against a reference model, or -log q(y).

    `reference` are the branches of the reference model at the start of the phase, without dropout.
    () is the base: as it never changes, what it says is kept from round to round.
    """

    name: LossKind
    reference: tuple[Branch, ...] | None = None
    token_losses: TokenLosses | None = None


def anchored(q: Tensor, p: Tensor, labels: Tensor, settings: LocalSettings) -> Tensor:
    """Return (1/Z) CE(p, q) + (1 - 1/Z) CE(y, q) with Z = 1 + p(y) (e^beta - 1).

    It is the cross-entropy of q with the target softmax(log p + beta 1[y]), as in GIFT (arXiv
    2601.09233). beta = 0 makes the reference the target, a large beta the gold token.
    """
    z = 1 + _at(p, labels).exp() * math.expm1(settings.anchor_beta)
    return _cross_entropy(p, q) / z - (1 - 1 / z) * _at(q, labels)


def distilled(q: Tensor, p: Tensor, labels: Tensor, settings: LocalSettings) -> Tensor:
    """Return CE(y, q) + lambda KL(p || q), as in FedKD (arXiv 2108.13323)."""
    divergence = _cross_entropy(p, q) - _cross_entropy(p, p)
    return settings.distill_weight * divergence - _at(q, labels)


PLAIN = Loss("plain")
ANCHORED = Loss("anchored", (), anchored)
DISTILLED = Loss("distilled", (R, S), distilled)


def pack_loss(
    token_losses: TokenLosses, model: BranchedModel, states: States, settings: LocalSettings
) -> PackLoss:
    """Return a function of the rows of a forward pass: their summed loss, differentiable.

    `states` are those of the reference model for every row with supervised tokens. Logits of both
    models are computed in chunks from hidden states: there is no (tokens, vocabulary) block.
    """

    def of(rows: Sequence[TokenRow]) -> Tensor:
        own = label_states(model.model, rows)
        reference = torch.cat([states[row] for row in rows]).to(own.device)
        labels = torch.tensor(labels_of(rows), device=own.device)

        def losses_of(chunk: Tensor, at: slice) -> Tensor:
            q = _log_probabilities(model, chunk)
            p = _log_probabilities(model, reference[at]).detach()
            return token_losses(q, p, labels[at], settings)

        return chunked_losses(model.model, own, losses_of).sum()

    return of


def gold_losses(model: BranchedModel, row: TokenRow, states: Tensor) -> Tensor:
    """Return -log p(y) of each label of a row from its hidden states, (labels,), fp32."""
    labels = torch.tensor(labels_of([row]), device=states.device)

    def losses_of(chunk: Tensor, at: slice) -> Tensor:
        return -_at(_log_probabilities(model, chunk), labels[at])

    return chunked_losses(model.model, states, losses_of)


def _log_probabilities(model: BranchedModel, states: Tensor) -> Tensor:
    return functional.log_softmax(logits_of(model.model, states), -1, dtype=torch.float32)


def _at(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    return log_probabilities.gather(-1, labels[:, None])[:, 0]


def _cross_entropy(p: Tensor, q: Tensor) -> Tensor:
    """Return -sum p log q of log-probabilities."""
    return -(p.exp() * q).sum(-1)
