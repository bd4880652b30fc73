"""Losses of token rows: many rows in one forward, logits only where there is a label."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsdr.models.attention import uses_rows
from fedsdr.types import TokenRow


def pack(rows: Sequence[TokenRow], pack_tokens: int) -> list[list[int]]:
    """Return groups of row indices with at most `pack_tokens` tokens each, first fit decreasing.

    A row longer than that gets a group of its own.
    """
    groups: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: (-len(rows[i].tokens), i)):
        size = len(rows[i].tokens)
        for g, free in enumerate(room):
            if size <= free:
                groups[g].append(i)
                room[g] -= size
                break
        else:
            groups.append([i])
            room.append(pack_tokens - size)
    return groups


def device_of(model: nn.Module) -> torch.device:
    """Return where the model's weights are."""
    return next(model.parameters()).device


def row_losses(model: nn.Module, rows: Sequence[TokenRow]) -> Tensor:
    """Return the summed loss of each row in nats, (rows,), fp32, with gradient.

    loss_i = - sum over supervised t > 0 of log p(token_t | tokens before t of row i)
    """
    forward = _packed_logits if uses_rows(model) else _padded_logits
    device = device_of(model)
    labels, owner = [], []
    for i, row in enumerate(rows):
        at = [t for t in range(1, len(row.tokens)) if row.supervised[t]]
        labels += [row.tokens[t] for t in at]
        owner += [i] * len(at)
    total = torch.zeros(len(rows), device=device)
    if not labels:
        return total
    logits = forward(model, rows, device).float()
    losses = functional.cross_entropy(logits, torch.tensor(labels, device=device), reduction="none")
    return total.index_add(0, torch.tensor(owner, device=device), losses)


def supervised_tokens(row: TokenRow) -> int:
    """Return how many predictions of the row count in the loss (the first token has none)."""
    return sum(row.supervised[1:])


def positions(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Return (1, tokens) positions that start again at 0 in each row."""
    return torch.cat([torch.arange(n, device=device) for n in lengths])[None]


def _packed_logits(model: nn.Module, rows: Sequence[TokenRow], device: torch.device) -> Tensor:
    """Logits (labels, vocabulary) of the rows laid end to end, without padding."""
    lengths = tuple(len(row.tokens) for row in rows)
    keep, start = [], 0
    for row, length in zip(rows, lengths, strict=True):
        keep += [start + t - 1 for t in range(1, length) if row.supervised[t]]
        start += length
    logits: Tensor = model(
        input_ids=torch.tensor([[t for row in rows for t in row.tokens]], device=device),
        position_ids=positions(lengths, device),
        row_lengths=lengths,
        use_cache=False,
        logits_to_keep=torch.tensor(keep, device=device),
    ).logits
    return logits[0]


def _padded_logits(model: nn.Module, rows: Sequence[TokenRow], device: torch.device) -> Tensor:
    """The same with padding and the model's own attention, for models that cannot pack."""
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
    """Return the last layer's state at the last token of each prompt, (prompts, hidden), fp32."""
    device = device_of(model)
    states = []
    for tokens in prompts:
        out = model(
            input_ids=torch.tensor([list(tokens)], device=device),
            position_ids=positions((len(tokens),), device),
            use_cache=False,
            output_hidden_states=True,
            logits_to_keep=1,
            **({"row_lengths": (len(tokens),)} if uses_rows(model) else {}),
        )
        states.append(out.hidden_states[-1][0, -1].float())
    return torch.stack(states)
