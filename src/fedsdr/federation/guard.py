"""What an update must satisfy to be counted."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsdr.tensors import ByShape
from fedsdr.types import ClientFault, ClientUpdate


def reason_to_refuse(
    answer: ClientUpdate | ClientFault,
    round: int,
    like: Mapping[str, Tensor],
    control: Mapping[str, Tensor],
) -> str:
    """Return why an answer cannot be counted, in one line, or '' when it can.

    An update must be of this round, count at least one example, and have exactly the names, shapes
    and dtypes of `like` (the shared tensors, encoded as updates are) and of `control`, with every
    value finite, before and after decoding.
    """
    if isinstance(answer, ClientFault):
        return answer.reason
    if answer.round != round:
        return f"is of round {answer.round}, not of round {round}"
    if answer.num_examples < 1:
        return f"counts {answer.num_examples} examples"
    return _mismatch(answer.delta, like, "update") or _mismatch(
        answer.control_delta, control, "control"
    )


def _mismatch(values: Mapping[str, Tensor], like: Mapping[str, Tensor], what: str) -> str:
    for name in sorted(like.keys() - values.keys()):
        return f"{what} lacks '{name}'"
    for name in sorted(values.keys() - like.keys()):
        return f"{what} has a tensor too many: '{name}'"
    for name, value in values.items():
        wanted = like[name]
        if value.shape != wanted.shape:
            return f"{what} '{name}' has shape {tuple(value.shape)}, not {tuple(wanted.shape)}"
        if value.dtype != wanted.dtype:
            return f"{what} '{name}' is {_short(value)}, not {_short(wanted)}"
    # Integers are finite, but not what they decode to: up to 128 times their scale.
    floats = {name: value for name, value in values.items() if value.is_floating_point()}
    limit = torch.finfo(torch.float32).max / (1 if len(floats) == len(values) else 128)
    if not all(_within(stack, limit) for stack in ByShape(floats).stack(floats).values()):
        name = next(name for name, value in floats.items() if not _within(value, limit))
        return f"{what} '{name}' has a value that is not finite"
    return ""


def _within(value: Tensor, limit: float) -> bool:
    """Return whether all of |value| is at most `limit`; a NaN is not."""
    least, most = value.aminmax()
    return -limit <= least.item() and most.item() <= limit


def _short(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
