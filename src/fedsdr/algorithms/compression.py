"""What an update looks like on the wire: fp32, bf16, or int8 with one scale a row.

A client whose updates are rounded keeps what rounding took and adds it to its next update (error
feedback), so that nothing is lost for good, only late:

    x_t = dR_t + e_t        what the client wants to send
    q_t = encode(x_t)       what crosses
    e_t+1 = x_t - decode(q_t)

With e_1 = 0 the sum of what was counted is sum_t decode(q_t) = sum_t dR_t - e_T+1: behind the true
sum by one rounding, however many rounds there were (Seide et al., Interspeech 2014; Karimireddy et
al., ICML 2019, arXiv 1901.09847).
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from fedsdr.tensors import ByShape, Tensors, add, map_tensors, subtract

UpdateDtype = Literal["fp32", "bf16", "int8"]
SCALE = ".scale"  # the scales of the int8 tensor NAME are the tensor NAME.scale


def encode(values: Mapping[str, Tensor], dtype: UpdateDtype) -> Tensors:
    """Return fp32 tensors in the form that crosses; fp32 stays what it is, bit by bit.

    bf16: rounded to the nearest, ties to even; |x - decode(x)| <= 2^-8 |x|.
    int8: s = max |x| / 127 and q = round(x / s) for each row; |x - q s| <= s / 2. A row runs along
    the longer side of a factor, so that it is what belongs to one rank component: a row of A
    (rank, in), a column of B (out, rank). A row of zeros has s = 0. The scales keep the dimension
    that they were taken over, with size 1. A row with a value that is not finite has a scale that
    is not finite.
    """
    if dtype == "fp32":
        return dict(values)
    if dtype == "bf16":
        return {name: x.to(torch.bfloat16) for name, x in values.items()}
    encoded: Tensors = {}
    for name, x in values.items():
        longest = max(range(x.dim()), key=lambda d: (x.shape[d], d))
        scale = x.abs().amax(dim=longest, keepdim=True) / 127
        steps = torch.where(scale > 0, x / scale, 0.0).round().clamp(-127, 127)
        encoded |= {name: steps.to(torch.int8), name + SCALE: scale}
    return encoded


def decode(encoded: Mapping[str, Tensor]) -> Tensors:
    """Return the fp32 values of an encoded update."""
    by_shape = ByShape({name: x for name, x in encoded.items() if not name.endswith(SCALE)})
    return by_shape.unstack(decode_stacked(encoded, by_shape))


def decode_stacked(encoded: Mapping[str, Tensor], by_shape: ByShape) -> Tensors:
    """Return the fp32 values of an encoded update, stacked: the client's bits at the server."""
    stacks = by_shape.stack(encoded)
    if any(x.dtype == torch.int8 for x in stacks.values()):
        return map_tensors(lambda q, s: q.float() * s, stacks, by_shape.stack(encoded, SCALE))
    return map_tensors(torch.Tensor.float, stacks)


def encode_with_feedback(
    delta: Tensors, residual: Tensors, dtype: UpdateDtype
) -> tuple[Tensors, Tensors]:
    """Return (encode(dR + e), the new e). `residual` is empty before the first update; in fp32,
    where nothing is rounded, it stays empty."""
    if dtype == "fp32":
        return delta, {}
    wanted = add(delta, residual) if residual else delta
    encoded = encode(wanted, dtype)
    return encoded, subtract(wanted, decode(encoded))
