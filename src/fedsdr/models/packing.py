"""Losses of token rows: many rows in one forward pass, logits only at supervised positions."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsdr.models.fused_ops import fuse_norms, label_losses
from fedsdr.models.packed_attention import PackedRows
from fedsdr.models.row_attention import ATTENTION, register, supports_rows, uses_rows
from fedsdr.types import TokenRow

Tokens = TypeVar("Tokens", tuple[int, ...], list[int])


def pack(rows: Sequence[TokenRow], pack_tokens: int) -> list[list[int]]:
    """Return groups of row indices with at most `pack_tokens` tokens each (first-fit decreasing).

    A prefix that all rows share counts once per group. A longer row gets a group of its own.
    """
    prefix = shared_prefix([row.tokens for row in rows])
    groups: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: (-len(rows[i].tokens), i)):
        size = len(rows[i].tokens) - prefix
        for g, free in enumerate(room):
            if size <= free:
                groups[g].append(i)
                room[g] -= size
                break
        else:
            groups.append([i])
            room.append(pack_tokens - prefix - size)
    return groups


def shared_prefix(rows: Sequence[Tokens]) -> int:
    """Return the length of the longest common prefix that leaves every row at least one token.

    0 for a single row. Rows of a chat template share the system turn.
    """
    if len(rows) < 2:
        return 0
    first, last = min(rows), max(rows)  # in sorted order, these two differ first
    most = min(map(len, rows)) - 1
    return next((i for i in range(most) if first[i] != last[i]), most)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's weights."""
    return next(model.parameters()).device


def prepare(model: nn.Module) -> None:
    """Switch a loaded, frozen model to the fast path, as far as its architecture supports it.

    Attention over packed rows, fused norms, and an output head that is applied by the loss.
    """
    if supports_rows(model):
        register()
        model.set_attn_implementation(ATTENTION)  # type: ignore[operator]
    fuse_norms(model)
    model.plain_head = uses_rows(model) and _head_is_plain(model)  # type: ignore[assignment]


@torch.no_grad()
def _head_is_plain(model: nn.Module) -> bool:
    """Return whether the logits are exactly head(last hidden state): no soft cap, no scale."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    if type(head) is not nn.Linear or not hasattr(model, "base_model"):
        return False
    device = device_of(model)
    if device.type == "meta":  # no values to compare
        return True
    ids = torch.arange(2, device=device)[None]
    arguments: dict[str, Any] = {"position_ids": positions((2,), device), "use_cache": False}
    arguments["packed_rows"] = PackedRows((2,))
    logits = model(input_ids=ids, **arguments).logits
    body: Any = model.base_model
    hidden = body(input_ids=ids, **arguments).last_hidden_state
    return torch.equal(logits, head(hidden))


def row_losses(model: nn.Module, rows: Sequence[TokenRow]) -> Tensor:
    """Return the summed loss of each row in nats, (rows,), fp32, differentiable.

    loss_i = -sum over supervised t > 0 of log p(token_t | tokens of row i before t)
    """
    device = device_of(model)
    places = _label_places(rows)
    labels = [row.tokens[t] for row, at in zip(rows, places, strict=True) for t in at]
    owner = [i for i, at in enumerate(places) for _ in at]
    total = torch.zeros(len(rows), device=device)
    if not labels:
        return total
    wanted = torch.tensor(labels, device=device)
    if getattr(model, "plain_head", False):
        inputs, keep = _packed(rows, places, device)
        hidden = model.base_model(**inputs).last_hidden_state[0]  # type: ignore[operator]
        head: nn.Linear = model.get_output_embeddings()  # type: ignore[operator]
        losses = label_losses(hidden[keep], head, wanted)
    else:
        logits = label_logits(model, rows)
        losses = functional.cross_entropy(logits.float(), wanted, reduction="none")
    return total.index_add(0, torch.tensor(owner, device=device), losses)


def label_logits(model: nn.Module, rows: Sequence[TokenRow]) -> Tensor:
    """Return the logits that predict the supervised tokens t > 0, in the model's dtype.

    Shape (supervised tokens of all rows, vocabulary), in row order.
    """
    if not uses_rows(model):
        return _padded_logits(model, rows, device_of(model))
    inputs, keep = _packed(rows, _label_places(rows), device_of(model))
    logits: Tensor = model(**inputs, logits_to_keep=keep).logits[0]
    return logits


def _label_places(rows: Sequence[TokenRow]) -> list[list[int]]:
    return [[t for t in range(1, len(row.tokens)) if row.supervised[t]] for row in rows]


def supervised_tokens(row: TokenRow) -> int:
    """Return the number of the row's tokens in the loss (the first token is never predicted)."""
    return sum(row.supervised[1:])


def positions(lengths: Sequence[int], device: torch.device, first: int = 0) -> Tensor:
    """Return (1, tokens) positions that restart at `first` in each row."""
    return torch.cat([torch.arange(first, first + n, device=device) for n in lengths])[None]


def _packed(
    rows: Sequence[TokenRow], places: Sequence[Sequence[int]], device: torch.device
) -> tuple[dict[str, Any], Tensor]:
    """Return the model's arguments and, for each label, the index of the token that predicts it.

    `places` are the labels' positions in each row. The shared prefix comes first, then each row's
    own tokens, without padding.
    """
    prefix = shared_prefix([row.tokens for row in rows])
    lengths = tuple(len(row.tokens) - prefix for row in rows)
    keep, start = [], prefix
    for at, length in zip(places, lengths, strict=True):
        keep += [t - 1 if t <= prefix else start + t - 1 - prefix for t in at]
        start += length
    tokens = [*rows[0].tokens[:prefix], *(t for row in rows for t in row.tokens[prefix:])]
    numbered = (positions((prefix,), device), positions(lengths, device, first=prefix))
    inputs = {
        "input_ids": torch.tensor([tokens], device=device),
        "position_ids": torch.cat(numbered, dim=1),
        "packed_rows": PackedRows(lengths, prefix),
        "use_cache": False,
    }
    return inputs, torch.tensor(keep, device=device)


def _padded_logits(model: nn.Module, rows: Sequence[TokenRow], device: torch.device) -> Tensor:
    """Return `label_logits` of a padded batch with the model's own attention."""
    longest = max(len(row.tokens) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    keep = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        n = len(row.tokens)
        ids[i, :n] = torch.tensor(row.tokens)
        mask[i, :n] = 1
        keep[i, : n - 1] = torch.tensor(row.supervised[1:], dtype=torch.bool)
    logits: Tensor = model(
        input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
    ).logits
    return logits[keep.to(device)]


def last_states(model: nn.Module, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Return the last hidden state at the last token of each prompt, (prompts, size), fp32."""
    device = device_of(model)
    states = []
    for tokens in prompts:
        out = model(
            input_ids=torch.tensor([list(tokens)], device=device),
            position_ids=positions((len(tokens),), device),
            use_cache=False,
            output_hidden_states=True,
            logits_to_keep=1,
            **({"packed_rows": PackedRows((len(tokens),))} if uses_rows(model) else {}),
        )
        states.append(out.hidden_states[-1][0, -1].float())
    return torch.stack(states)
