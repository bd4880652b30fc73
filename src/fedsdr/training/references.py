"""What a reference model says of a client's rows: the base, kept from round to round, or a teacher.

Of each supervised token its last hidden state is kept, `hidden_size` numbers, or its loss alone.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

import torch
from torch import Tensor

from fedsdr.errors import Refusal
from fedsdr.models.chunked_losses import logits_of
from fedsdr.models.forward_plan import plan_of
from fedsdr.models.packing import label_logits, label_states, pack, supervised_tokens
from fedsdr.models.two_branch import BranchedModel
from fedsdr.training.client_store import ClientStore
from fedsdr.training.pack_losses import States, gold_losses
from fedsdr.types import Branch, TokenRow


@torch.no_grad()
def states_of(
    model: BranchedModel, rows: Sequence[TokenRow], pack_tokens: int, *branches: Branch
) -> States:
    """Return the last hidden state before each label of the rows, without dropout, on the CPU.

    Refusal when the logits of the model are not a function of it that `logits_of` knows.
    """
    rows = list({row: None for row in rows if supervised_tokens(row)})
    found: dict[TokenRow, Tensor] = {}
    with model.using(*branches):
        _check_logits(model, rows[:1])
        for group in pack(rows, pack_tokens):
            members = [rows[i] for i in group]
            states = label_states(model.model, members).cpu()
            sizes = [supervised_tokens(row) for row in members]
            found.update(zip(members, states.split(sizes), strict=True))
    return found


def base_states(
    model: BranchedModel, rows: Sequence[TokenRow], pack_tokens: int, store: ClientStore
) -> States:
    """Return `states_of` of the base, computed once and kept in `store`."""
    rows = list({row: None for row in rows if supervised_tokens(row)})

    def read() -> Tensor:
        states = states_of(model, rows, pack_tokens)
        return torch.cat([states[row] for row in rows])

    kept = store.kept(_key("states", rows), read)
    sizes = [supervised_tokens(row) for row in rows]
    return dict(zip(rows, kept.split(sizes), strict=True))


def without_unlikely(
    model: BranchedModel,
    rows: Sequence[TokenRow],
    perplexity: float,
    pack_tokens: int,
    store: ClientStore,
) -> tuple[TokenRow, ...]:
    """Return the rows without supervision of tokens with -log p(y) > log perplexity under the base.

    Selective token masking (arXiv 2501.14315). The base's losses are computed once and kept in
    `store`. Refusal when no supervised token remains.
    """
    counted = [row for row in rows if supervised_tokens(row)]

    def read() -> Tensor:
        states = states_of(model, counted, pack_tokens)
        return torch.cat([gold_losses(model, row, states[row]) for row in counted])

    kept = iter((store.kept(_key("losses", counted), read) <= math.log(perplexity)).tolist())
    masked = tuple(
        replace(
            row,
            supervised=tuple(
                counts and (place == 0 or next(kept)) for place, counts in enumerate(row.supervised)
            ),
        )
        for row in rows
    )
    if not any(map(supervised_tokens, masked)):
        raise Refusal(
            f"no supervised token has a perplexity of at most {perplexity:g} under the base; raise "
            "train.mask_perplexity"
        )
    return masked


def _key(what: str, rows: Sequence[TokenRow]) -> str:
    content = repr([(row.tokens, row.supervised) for row in rows])
    return f"{what}-{sha256(content.encode()).hexdigest()[:16]}"


def _check_logits(model: BranchedModel, rows: Sequence[TokenRow]) -> None:
    if not rows or plan_of(model.model).plain_head:
        return
    found = logits_of(model.model, label_states(model.model, rows)).float()
    wanted = label_logits(model.model, rows).float()
    if not torch.allclose(found, wanted, rtol=1e-2, atol=1e-2 * float(wanted.abs().max())):
        raise Refusal(
            "model.name: its logits are no known function of its last hidden states, so the losses "
            "against another model are not available; choose another method.name"
        )
