"""Local corrections: what FedProx and SCAFFOLD change in a client's gradient.

A correction is a function `adjust(name, grad, weight)` that changes `grad` in place. The trainer
builds it once a round and calls it for every trained parameter in every optimizer step, after the
backward pass of the whole batch and before clipping:

    adjust = local_correction(settings.correction, settings.mu, shared, control, control_client)
    for each optimizer step:
        ...                                           # backward of every micro-batch
        for name, p in trained.items():
            adjust(name, p.grad, p)
        ...                                           # clip, then optimizer.step()

Names that are not shared (a private branch) are left unchanged. `shared`, `control` and
`control_client` must be on the device of the weights.
"""

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from fedsdr.tensors import Tensors, map_tensors, subtract

CorrectionName = Literal["none", "fedprox", "scaffold"]
Adjust = Callable[[str, Tensor, Tensor], None]


def local_correction(
    name: CorrectionName,
    mu: float,
    shared: Mapping[str, Tensor],
    control: Mapping[str, Tensor],
    control_client: Mapping[str, Tensor],
) -> Adjust:
    """Return the `adjust` of one client in one round. `shared` is the global R of the round."""
    if name == "fedprox":
        return fedprox(shared, mu)
    if name == "scaffold":
        return scaffold(control, control_client)
    if name == "none":
        return no_correction
    raise ValueError(f"unknown correction '{name}' (one of: {', '.join(get_args(CorrectionName))})")


def no_correction(name: str, grad: Tensor, weight: Tensor) -> None:
    """Leave the gradient as it is."""


def fedprox(shared: Mapping[str, Tensor], mu: float) -> Adjust:
    """g += mu (R - R_global), the gradient of `proximal_loss` (Li et al., MLSys 2020).

    Under AdamW the term goes through the moments with the rest of the gradient, as if it were part
    of the loss.
    """

    def adjust(name: str, grad: Tensor, weight: Tensor) -> None:
        if name in shared:
            grad.add_(weight.detach() - shared[name], alpha=mu)

    return adjust


def proximal_loss(weights: Mapping[str, Tensor], shared: Mapping[str, Tensor], mu: float) -> Tensor:
    """Return (mu / 2) ||R - R_global||^2, the norm squared, over the shared names."""
    return mu / 2 * torch.stack([(weights[n] - shared[n]).square().sum() for n in shared]).sum()


def scaffold(control: Mapping[str, Tensor], control_client: Mapping[str, Tensor]) -> Adjust:
    """g += c - c_k (Karimireddy et al., ICML 2020, arXiv 1910.06378).

    The derivation assumes plain SGD. Under AdamW the correction is added before the moments, so
    AdamW sees g - c_k + c as the gradient; see `new_control` for what c and c_k are then.
    """
    offset = subtract(control, control_client)

    def adjust(name: str, grad: Tensor, weight: Tensor) -> None:
        if name in offset:
            grad.add_(offset[name])

    return adjust


def new_control(
    control_client: Mapping[str, Tensor],
    control: Mapping[str, Tensor],
    shared: Mapping[str, Tensor],
    local: Mapping[str, Tensor],
    steps: int,
    lr: float,
) -> Tensors:
    """Return c_k+ = c_k - c + (R_global - R) / (steps * lr), SCAFFOLD's option II.

    `local` is R after `steps` optimizer steps at the constant learning rate `lr`, from `shared`;
    all five trees have the same names, and c and c_k start as zeros. The client sends c_k+ - c_k.

    Under SGD without clipping or weight decay, c_k+ is exactly the mean of the uncorrected
    gradients that the client saw. Under AdamW it is not a gradient: (R_global - R) / (steps * lr)
    is the mean of the normalised steps, about 1 per element however small the gradient is. Where
    gradients are much smaller than 1, c - c_k outweighs g: SCAFFOLD's guarantee does not hold, and
    it can end further from the optimum than FedAvg.
    """

    def one(c_k: Tensor, c: Tensor, before: Tensor, after: Tensor) -> Tensor:
        moved = (before.double() - after.detach().double()) / (steps * lr)
        return (c_k.double() - c.double() + moved).float()

    return map_tensors(one, control_client, control, shared, local)


def new_server_control(
    control: Mapping[str, Tensor],
    mean_control_delta: Mapping[str, Tensor],
    num_updates: int,
    num_clients: int,
) -> Tensors:
    """Return c + mean_{k in S}(c_k+ - c_k) |S| / K.

    The mean is over the `num_updates` = |S| accepted updates of the round, each with weight 1;
    `num_clients` = K counts all clients, sampled or not. If c is the mean of all c_k before the
    round, it is after it.
    """
    share = num_updates / num_clients

    def one(c: Tensor, d: Tensor) -> Tensor:
        return (c.double() + share * d.double()).float()

    return map_tensors(one, control, mean_control_delta)
