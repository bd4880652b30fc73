"""What an update must satisfy to be counted."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsdr.types import ClientFault, ClientUpdate, ServerState


def reason_to_refuse(answer: ClientUpdate | ClientFault, round: int, state: ServerState) -> str:
    """Return why an answer cannot be counted, in one line, or '' when it can.

    An update must be of this round, count at least one example, and have exactly the names and
    shapes of the shared tensors, in fp32, every value finite.
    """
    if isinstance(answer, ClientFault):
        return answer.reason
    if answer.round != round:
        return f"is of round {answer.round}, not of round {round}"
    if answer.num_examples < 1:
        return f"counts {answer.num_examples} examples"
    return _mismatch(answer.delta, state.shared, "update") or _mismatch(
        answer.control_delta, state.control, "control"
    )


def _mismatch(values: Mapping[str, Tensor], like: Mapping[str, Tensor], what: str) -> str:
    for name in sorted(like.keys() - values.keys()):
        return f"{what} lacks '{name}'"
    for name in sorted(values.keys() - like.keys()):
        return f"{what} has a tensor too many: '{name}'"
    for name, value in values.items():
        if value.shape != like[name].shape:
            return f"{what} '{name}' has shape {tuple(value.shape)}, not {tuple(like[name].shape)}"
        if value.dtype != torch.float32:
            return f"{what} '{name}' is {value.dtype}, not float32"
        if not bool(torch.isfinite(value).all()):
            return f"{what} '{name}' has a value that is not finite"
    return ""
