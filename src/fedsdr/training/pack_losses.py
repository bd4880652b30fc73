"""The loss of a phase over the rows of a forward pass."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fedsdr.models.chunked_losses import chunked_losses, logits_of
from fedsdr.models.packing import device_of, label_states, labels_of
from fedsdr.models.two_branch import BranchedModel
from fedsdr.training.losses import TokenLosses, at_labels
from fedsdr.training.optimizer_step import PackLoss
from fedsdr.types import LocalSettings, TokenRow

States = Mapping[TokenRow, Tensor]  # last hidden state before each label of a row, (labels, size)


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
    """Return -log p(y) of each label of a row, (labels,), fp32, from its states; on the CPU."""
    states = states.to(device_of(model.model))
    labels = torch.tensor(labels_of([row]), device=states.device)

    def losses_of(chunk: Tensor, at: slice) -> Tensor:
        return -at_labels(_log_probabilities(model, chunk), labels[at])

    return chunked_losses(model.model, states, losses_of).cpu()


def _log_probabilities(model: BranchedModel, states: Tensor) -> Tensor:
    return functional.log_softmax(logits_of(model.model, states), -1, dtype=torch.float32)
