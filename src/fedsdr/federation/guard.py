"""What an update must satisfy to be counted."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedsdr.algorithms.compress import SCALE
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
        # An int8 tensor is finite, but not what it decodes to: up to 128 times its scale.
        if value.is_floating_point() and not _finite(
            value * 128 if name.endswith(SCALE) else value
        ):
            return f"{what} '{name}' has a value that is not finite"
    return ""


def _finite(value: Tensor) -> bool:
    """A finite sum has finite terms only, and takes a fifth of the time; it can overflow, though,
    where no term does."""
    return math.isfinite(value.sum().item()) or bool(torch.isfinite(value).all())


def _short(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
