"""What an update must satisfy to be counted."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsdr.algorithms.compression import SCALE
from fedsdr.tensors import ByShape, norm
from fedsdr.types import ClientFault, ClientUpdate

Form = Mapping[str, tuple[torch.Size, torch.dtype]]  # what the tensor of each name must be


def form_of(values: Mapping[str, Tensor]) -> Form:
    """Return names, shapes and dtypes."""
    return {name: (x.shape, x.dtype) for name, x in values.items()}


def reason_to_refuse(
    answer: ClientUpdate | ClientFault, round: int, form: Form, control: Form, by_shape: ByShape
) -> str:
    """Return why an answer cannot be counted, in one line, or '' when it can.

    An update must be of this round, count at least one example, and have exactly the names, shapes
    and dtypes of `form` (the shared tensors, encoded as updates are) and of `control`, with every
    value finite, before and after decoding. `by_shape` is of the shared tensors.
    """
    if isinstance(answer, ClientFault):
        return answer.reason
    if answer.round != round:
        return f"is of round {answer.round}, not of round {round}"
    if answer.num_examples < 1:
        return f"counts {answer.num_examples} examples"
    return (
        _mismatch(answer.delta, form, "update")
        or _mismatch(answer.control_delta, control, "control")
        or _not_finite(answer.delta, by_shape, "update")
        or (_not_finite(answer.control_delta, by_shape, "control") if control else "")
    )


def reason_of_norm(decoded: Mapping[str, Tensor], limits: Mapping[str, float]) -> str:
    """Return which limit (key -> norm; 0: none) a decoded update is over, or ''."""
    for key, most in limits.items():
        if most and (size := norm(decoded)) > most:
            return f"update has norm {size:.3g}, above {key} {most:g}"
    return ""


def _mismatch(values: Mapping[str, Tensor], wanted: Form, what: str) -> str:
    form = form_of(values)
    if form == wanted:
        return ""
    for name in sorted(wanted.keys() - form.keys()):
        return f"{what} lacks '{name}'"
    for name in sorted(form.keys() - wanted.keys()):
        return f"{what} has a tensor too many: '{name}'"
    name = next(name for name in form if form[name] != wanted[name])
    (shape, dtype), (wanted_shape, wanted_dtype) = form[name], wanted[name]
    if shape != wanted_shape:
        return f"{what} '{name}' has shape {tuple(shape)}, not {tuple(wanted_shape)}"
    return f"{what} '{name}' is {_short(dtype)}, not {_short(wanted_dtype)}"


def _not_finite(values: Mapping[str, Tensor], by_shape: ByShape, what: str) -> str:
    # Integers are finite, but not what they decode to: up to 128 times their scale.
    scaled = any(name.endswith(SCALE) for name in values)
    limit = torch.finfo(torch.float32).max / (128 if scaled else 1)
    stacks = by_shape.stack(values, SCALE if scaled else "")
    if all(_within(stack, limit) for stack in stacks.values()):
        return ""
    floats = {name: x for name, x in values.items() if x.is_floating_point()}
    name = next(name for name, x in floats.items() if not _within(x, limit))
    return f"{what} '{name}' has a value that is not finite"


def _within(value: Tensor, limit: float) -> bool:
    """Return whether all of |value| is at most `limit`; a NaN is not."""
    least, most = value.aminmax()
    return -limit <= least.item() and most.item() <= limit


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
