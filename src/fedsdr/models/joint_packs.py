"""Packs of several clients in one forward pass, each through its own branches."""

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

from torch import Tensor

from fedsdr.models.forward_plan import plan_of
from fedsdr.models.packing import pack, packed_tokens, row_losses, supervised_tokens
from fedsdr.models.two_branch import BranchedModel
from fedsdr.types import TokenRow

MOST_AT_ONCE = 32  # clients of a pass where their number is automatic: each holds its own branches

Pack = tuple[BranchedModel, Sequence[TokenRow]]  # the rows of one client in a pass


def joint_passes(
    rows: Mapping[int, Sequence[TokenRow]], pack_tokens: int
) -> list[list[tuple[int, list[int]]]]:
    """Return the passes that compute the rows of all clients: (client, indices of its rows) each.

    A client's rows are packed as if it were alone and its packs keep their order; a pass takes the
    next pack of each client while there is room. Rows without supervised tokens are left out.
    """
    waiting, size = {}, {}
    for i, own in rows.items():
        counted = [k for k, row in enumerate(own) if supervised_tokens(row)]
        groups = pack([own[k] for k in counted], pack_tokens)
        waiting[i] = deque([counted[k] for k in group] for group in groups)
        size[i] = deque(packed_tokens([own[k] for k in members]) for members in waiting[i])
    passes = []
    while any(waiting.values()):
        members: list[tuple[int, list[int]]] = []
        room = pack_tokens
        for i, packs in waiting.items():
            if packs and (not members or size[i][0] <= room):
                room -= size[i].popleft()
                members.append((i, packs.popleft()))
        passes.append(members)
    return passes


def running_packs(packs: Sequence[Pack]) -> AbstractContextManager[None]:
    """Return the context in which a pass of these packs runs, and its backward."""
    return packs[0][0].running(*((model, packed_tokens(rows)) for model, rows in packs))


def joint_losses(packs: Sequence[Pack]) -> tuple[Tensor, ...]:
    """Return the losses of each pack's rows, as `row_losses` does, from one forward pass.

    From one each where the rows need different rotary frequencies.
    """
    model = packs[0][0].model
    sizes = [len(rows) for _, rows in packs]
    together = [row for _, rows in packs for row in rows]
    if len(plan_of(model).groups([len(row.tokens) for row in together])) == 1:
        return row_losses(model, together, sizes).split(sizes)
    losses = []
    for own, rows in packs:
        with own.running():
            losses.append(row_losses(model, rows))
    return tuple(losses)
