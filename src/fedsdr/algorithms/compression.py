"""Update compression: fp32, bf16, or int8 with one scale a row.

A client keeps the rounding error of its update and adds it to the next one (error feedback):

    x_t = dR_t + e_t        the update with the error of the last round
    q_t = encode(x_t)       is sent
    e_t+1 = x_t - decode(q_t)

With e_1 = 0, sum_t decode(q_t) = sum_t dR_t - e_T+1: however many rounds there are, the sum is
behind by one rounding (Seide et al., Interspeech 2014; Karimireddy et al., ICML 2019,
arXiv 1901.09847).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsdr.config_keys import UpdateDtype
from fedsdr.tensors import Tensors, add, difference_in_spec, num_bytes, subtract

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
SCALE = ".scale"  # the scales of the int8 tensor NAME are the tensor NAME.scale


def encode(values: Mapping[str, Tensor], dtype: UpdateDtype) -> Tensors:
    """Return fp32 tensors as they are sent.

    fp32: unchanged. bf16: rounded to the nearest, ties to even; |x - decode(x)| <= 2^-8 |x|.
    int8: q = round(x / s) with s = max |x| / 127 of the row; |x - q s| <= s / 2. A row runs along
    the longer side of a factor, so it belongs to one rank component: a row of A (rank, in), a
    column of B (out, rank). A row of zeros has s = 0. The scales keep the reduced dimension, with
    size 1. A row with a value that is not finite has a scale that is not finite.
    """
    if dtype == "fp32":
        return dict(values)
    if dtype == "bf16":
        return {name: x.to(torch.bfloat16) for name, x in values.items()}
    encoded: Tensors = {}
    for name, x in values.items():
        scale = x.abs().amax(dim=_longest(x), keepdim=True) / 127
        steps = torch.where(scale > 0, x / scale, 0.0).round().clamp(-127, 127)
        encoded |= {name: steps.to(torch.int8), name + SCALE: scale}
    return encoded


def decode(
    encoded: Mapping[str, Tensor], like: Mapping[str, Tensor], dtype: UpdateDtype
) -> Tensors:
    """Return the fp32 values of an encoded update.

    `like` holds fp32 tensors of the names and shapes of the update. ValueError, in one line, when
    `encoded` is not what `encode` makes of such tensors.
    """
    if difference := difference_in_spec(encoded, _encoded_spec(like, dtype)):
        raise ValueError(f"update {difference}")
    if dtype == "int8":
        return {name: encoded[name].float() * encoded[name + SCALE] for name in like}
    return {name: encoded[name].float() for name in like}


def encoded_bytes(like: Mapping[str, Tensor], dtype: UpdateDtype) -> int:
    """Return the size in bytes of an encoded update, without names or framing."""
    return num_bytes(_encoded_spec(like, dtype))


def _encoded_spec(like: Mapping[str, Tensor], dtype: UpdateDtype) -> Tensors:
    """Return tensors without values that have the names, shapes and dtypes of an update."""
    spec: Tensors = {}
    for name, x in like.items():
        spec[name] = torch.empty(x.shape, dtype=DTYPES[dtype], device="meta")
        if dtype == "int8":
            shape = list(x.shape)
            shape[_longest(x)] = 1
            spec[name + SCALE] = torch.empty(shape, device="meta")
    return spec


def _longest(x: Tensor) -> int:
    """Return the longest dimension, the last of equal ones."""
    return max(range(x.dim()), key=lambda d: (x.shape[d], d))


def encode_with_feedback(
    delta: Tensors, residual: Tensors, dtype: UpdateDtype
) -> tuple[Tensors, Tensors]:
    """Return (encode(dR + e), the new e). `residual` is empty before the first update; it stays
    empty in fp32, where nothing is rounded."""
    if dtype == "fp32":
        return delta, {}
    wanted = add(delta, residual) if residual else delta
    encoded = encode(wanted, dtype)
    return encoded, subtract(wanted, decode(encoded, wanted, dtype))
