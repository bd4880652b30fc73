"""Random low-rank factors of two small modules."""

import torch

from fedsdr.tensors import Tensors

SHAPES = {"R/q": (10, 12), "R/v": (6, 12)}  # module -> (out, in)


def random_factors(seed: int, rank: int, size: float = 1.0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for module, (size_out, size_in) in SHAPES.items():
        made[f"{module}.lora_A"] = size * torch.randn(rank, size_in, generator=generator)
        made[f"{module}.lora_B"] = size * torch.randn(size_out, rank, generator=generator)
    return made
