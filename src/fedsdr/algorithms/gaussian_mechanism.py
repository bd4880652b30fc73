"""The Gaussian mechanism: clip an update, then add noise.

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
    """Return x + N(0, std^2), drawn from the operating system's entropy.

    It must not depend on a configured seed: whoever knows the seed could subtract the noise.
    """
    # 128 bits: PyTorch seeds its CPU generator with 32, which can be tried one by one.
    draw = np.random.Generator(np.random.PCG64(secrets.randbits(128)))

    def noisy(x: Tensor) -> Tensor:
        return x + std * torch.from_numpy(np.asarray(draw.standard_normal(x.shape))).to(x)

    return map_tensors(noisy, values)
