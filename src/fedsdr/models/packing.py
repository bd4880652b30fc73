"""Losses of token rows: many rows in one forward pass, logits only at supervised positions."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsdr.models.forward_plan import plan_of
from fedsdr.models.fused_ops import label_losses
from fedsdr.models.packed_attention import PackedRows, RowBlock
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


def row_losses(
    model: nn.Module, rows: Sequence[TokenRow], blocks: Sequence[int] | None = None
) -> Tensor:
    """Return the summed loss of each row in nats, (rows,), fp32, differentiable.

    loss_i = -sum over supervised t > 0 of log p(token_t | tokens of row i before t)

    `blocks` says how many consecutive rows belong to each client (None: all to one). Clients share
    no prefix, since their branches differ. ValueError if the model cannot pack the rows of several.
    """
    device = device_of(model)
    places = _label_places(rows)
    labels = labels_of(rows)
    owner = [i for i, at in enumerate(places) for _ in at]
    total = torch.zeros(len(rows), device=device)
    if not labels:
        return total
    wanted = torch.tensor(labels, device=device)
    if plan_of(model).plain_head:
        states = label_states(model, rows, blocks)
        losses = label_losses(states, model.get_output_embeddings(), wanted)  # type: ignore[operator]
    else:
        logits = _label_outputs(model, rows, blocks, states=False)
        losses = functional.cross_entropy(logits.float(), wanted, reduction="none")
    return total.index_add(0, torch.tensor(owner, device=device), losses)


def label_logits(model: nn.Module, rows: Sequence[TokenRow]) -> Tensor:
    """Return the logits that predict the supervised tokens t > 0, in the model's dtype.

    Shape (supervised tokens of all rows, vocabulary), in row order.
    """
    if plan_of(model).plain_head:
        logits: Tensor = model.get_output_embeddings()(label_states(model, rows))  # type: ignore[operator]
        return logits
    return _label_outputs(model, rows, states=False)


def label_states(
    model: nn.Module, rows: Sequence[TokenRow], blocks: Sequence[int] | None = None
) -> Tensor:
    """Return the last hidden state before each supervised token t > 0.

    Shape (supervised tokens of all rows, size), in row order.
    """
    return _label_outputs(model, rows, blocks, states=True)


def _label_outputs(
    model: nn.Module,
    rows: Sequence[TokenRow],
    blocks: Sequence[int] | None = None,
    *,
    states: bool,
) -> Tensor:
    """Return the last hidden state, or the model's own logits, before each label."""
    groups = plan_of(model).groups([len(row.tokens) for row in rows])
    if groups == [list(range(len(rows)))]:
        return _group_outputs(model, rows, states, blocks)
    if blocks:
        raise ValueError("the rows of several clients do not fit into one forward pass")
    found: dict[int, Tensor] = {}
    for group in groups:
        members = [rows[i] for i in group if supervised_tokens(rows[i])]
        if members:
            sizes = [supervised_tokens(rows[i]) for i in group]
            outputs = _group_outputs(model, members, states).split(sizes)
            found.update(zip(group, outputs, strict=True))
    return torch.cat([found[i] for i in sorted(found)])


def _group_outputs(
    model: nn.Module, rows: Sequence[TokenRow], states: bool, blocks: Sequence[int] | None = None
) -> Tensor:
    """Return `_label_outputs` of rows that share one forward pass."""
    plan, places, device = plan_of(model), _label_places(rows), device_of(model)
    if plan.losses == "packed":
        inputs, keep = _packed(rows, places, device, blocks)
    elif blocks:
        raise ValueError("the model cannot pack rows")
    else:
        inputs, keep = _padded(rows, places, device)
    if states:
        hidden: Tensor = model.base_model(**inputs).last_hidden_state  # type: ignore[operator]
        return hidden.flatten(0, 1)[keep]
    if plan.losses == "packed":
        inputs, keep = inputs | {"logits_to_keep": keep}, torch.arange(len(keep), device=device)
    logits: Tensor = model(**inputs).logits
    return logits.flatten(0, 1)[keep]


def labels_of(rows: Sequence[TokenRow]) -> list[int]:
    """Return the supervised tokens t > 0 of all rows, in row order."""
    places = zip(rows, _label_places(rows), strict=True)
    return [row.tokens[t] for row, at in places for t in at]


def _label_places(rows: Sequence[TokenRow]) -> list[list[int]]:
    return [[t for t in range(1, len(row.tokens)) if row.supervised[t]] for row in rows]


def supervised_tokens(row: TokenRow) -> int:
    """Return the number of the row's tokens in the loss (the first token is never predicted)."""
    return sum(row.supervised[1:])


def packed_tokens(rows: Sequence[TokenRow]) -> int:
    """Return the number of tokens of a pack: a shared prefix counts once."""
    prefix = shared_prefix([row.tokens for row in rows])
    return prefix + sum(len(row.tokens) - prefix for row in rows)


def _packed(
    rows: Sequence[TokenRow],
    places: Sequence[Sequence[int]],
    device: torch.device,
    blocks: Sequence[int] | None = None,
) -> tuple[dict[str, Any], Tensor]:
    """Return the model's arguments and, for each label, the index of the token that predicts it.

    `places` are the labels' positions in each row. In each block the shared prefix comes first,
    then each row's own tokens, without padding.
    """
    tokens: list[int] = []
    numbers: list[int] = []  # positions, which restart in each row
    keep: list[int] = []
    packed: list[RowBlock] = []
    first = 0
    for count in blocks or [len(rows)]:
        members, at = rows[first : first + count], places[first : first + count]
        prefix, start = shared_prefix([row.tokens for row in members]), len(tokens)
        tokens += members[0].tokens[:prefix]
        numbers += range(prefix)
        for row, labels in zip(members, at, strict=True):
            own = len(tokens) - prefix  # where the row would start without a shared prefix
            keep += [t - 1 + (start if t <= prefix else own) for t in labels]
            tokens += row.tokens[prefix:]
            numbers += range(prefix, len(row.tokens))
        packed.append(RowBlock(tuple(len(row.tokens) - prefix for row in members), prefix))
        first += count
    inputs = {
        "input_ids": torch.tensor([tokens], device=device),
        "position_ids": torch.tensor([numbers], device=device),
        "packed_rows": PackedRows(tuple(packed)),
        "use_cache": False,
    }
    return inputs, torch.tensor(keep, device=device)


def _padded(
    rows: Sequence[TokenRow], places: Sequence[Sequence[int]], device: torch.device
) -> tuple[dict[str, Any], Tensor]:
    """Return the same as `_packed` for a padded batch; a single row has no mask."""
    longest = max(len(row.tokens) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    keep = [i * longest + t - 1 for i, at in enumerate(places) for t in at]
    for i, row in enumerate(rows):
        ids[i, : len(row.tokens)] = torch.tensor(row.tokens)
        mask[i, : len(row.tokens)] = 1
    inputs: dict[str, Any] = {"input_ids": ids.to(device), "use_cache": False}
    if len(rows) > 1:
        inputs["attention_mask"] = mask.to(device)
    return inputs, torch.tensor(keep, device=device)


def row_inputs(model: nn.Module, tokens: Sequence[int]) -> dict[str, Any]:
    """Return the model's arguments for one whole row without a cache."""
    row = TokenRow("", tuple(tokens), (False,) * len(tokens))
    make = _packed if plan_of(model).losses == "packed" else _padded
    return make([row], [[]], device_of(model))[0]


def last_states(model: nn.Module, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Return the last hidden state at the last token of each prompt, (prompts, size), fp32."""
    states = []
    for tokens in prompts:
        inputs = row_inputs(model, tokens)
        if plan_of(model).plain_head:  # spares the logits
            hidden = model.base_model(**inputs).last_hidden_state  # type: ignore[operator]
        else:
            hidden = model(**inputs, output_hidden_states=True).hidden_states[-1]
        states.append(hidden[0, -1].float())
    return torch.stack(states)
