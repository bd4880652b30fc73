"""The sent branches at a client: what a task carries of them, and what the client adds.

A task may carry less than the model holds: one of the two factors (`ffa`, `share-a`), or factors
of a smaller rank (`product`). Missing components are zero. With B and A both zero there, they get
no gradient and stay zero, so training in the larger rank is training in the smaller one.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedsdr.algorithms.aggregation import AGGREGATIONS, Aggregation
from fedsdr.errors import choose
from fedsdr.models.two_branch import BranchedModel
from fedsdr.tensors import Tensors
from fedsdr.training.methods import METHODS, Method
from fedsdr.types import Branch, ClientTask, LocalSettings


def aggregation_of(settings: LocalSettings) -> Aggregation:
    """Return the aggregation that the server uses; UserError for an unknown name."""
    return choose(settings.aggregation, AGGREGATIONS, "algorithm.aggregation")


def starting_factors(
    task: ClientTask, method: Method, model: BranchedModel, unsent: Mapping[str, Tensor]
) -> Tensors:
    """Return every factor of the sent branches at the start of the task, in the model's shapes.

    Factors that the task does not carry are the client's own `unsent` ones, or at first those of
    the common start of all clients.
    """
    parameters = {n: p for branch in method.sent for n, p in model.parameters(branch).items()}
    received = widened(task.shared, parameters)
    if received.keys() == parameters.keys():
        return received
    seed = task.settings.start_seed
    common = {n: x for branch in method.sent for n, x in model.initial(branch, seed).items()}
    return {**common, **unsent, **received}


def widened(values: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Tensors:
    """Return the values in the shapes of `like`, with zeros in what they lack."""

    def one(x: Tensor, shape: torch.Size) -> Tensor:
        if x.shape == shape:
            return x
        wide = x.new_zeros(shape)
        wide[tuple(map(slice, x.shape))] = x
        return wide

    return {name: one(x, like[name].shape) for name, x in values.items()}


def cut_to(values: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Tensors:
    """Return the values of the names and within the shapes of `like`."""
    return {n: values[n][tuple(map(slice, x.shape))].contiguous() for n, x in like.items()}


def unsent_factors(task: ClientTask, after: Mapping[str, Tensor]) -> Tensors:
    """Return the factors that the client trains and does not send."""
    kept = aggregation_of(task.settings).kept
    return {name: x for name, x in after.items() if name.endswith(kept)}


def trained_parameters(
    branch: Branch, model: BranchedModel, settings: LocalSettings
) -> dict[str, nn.Parameter]:
    """Return the parameters that a phase trains; the others of the branch get no gradient."""
    parameters = model.parameters(branch)
    if branch not in choose(settings.method, METHODS, "method.name").sent:
        return parameters
    frozen = aggregation_of(settings).frozen
    for name, parameter in parameters.items():
        parameter.requires_grad_(not name.endswith(frozen))
    return {name: p for name, p in parameters.items() if p.requires_grad}
