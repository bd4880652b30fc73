"""The two moves of client-level differential privacy: bound an update, and drown it in noise.

McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018.
"""

import secrets
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedsdr.tensors import Tensors, map_tensors, norm, scale


def clip(values: Mapping[str, Tensor], bound: float) -> Tensors:
    """Return x * min(1, bound / ||x||), the norm taken over all tensors together."""
    length = norm(values)
    return dict(values) if length <= bound else scale(values, bound / length)


def add_gaussian(values: Mapping[str, Tensor], std: float) -> Tensors:
    """Return x + N(0, std^2), drawn anew from the operating system's entropy.

    No seed of a configuration may choose it: who knows the seed could take the noise off again.
    """
    # 128 bits: PyTorch's own generator on a CPU starts from 32, which can be tried one by one.
    draw = np.random.Generator(np.random.PCG64(secrets.randbits(128)))

    def noisy(x: Tensor) -> Tensor:
        return x + std * torch.from_numpy(np.asarray(draw.standard_normal(x.shape))).to(x)

    return map_tensors(noisy, values)
