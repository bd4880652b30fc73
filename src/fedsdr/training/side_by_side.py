"""Train several clients at once: one forward and backward pass carries the rows of all of them.

Every client has its own branches, loss and optimizer, and takes its own optimizer steps; only the
base's matmuls are shared. Its rows are packed as if it were alone and its dropout masks are its
own, so its gradients do not depend on the clients beside it, except for rounding.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TypeVar

import torch

from fedsdr.models.joint_packs import joint_losses, joint_passes, running_packs
from fedsdr.models.packing import supervised_tokens
from fedsdr.models.two_branch import BranchedModel
from fedsdr.training.optimizer_step import (
    Gradient,
    Step,
    Training,
    divide_gradients,
    gradient_of,
)

T = TypeVar("T")
Found = tuple[float, int] | Exception  # summed loss in nats and supervised tokens, or a fault

logger = logging.getLogger(__name__)


def train_side_by_side(
    trainings: Sequence[Training[T]], models: Sequence[BranchedModel]
) -> list[T | Exception]:
    """Run the trainings in step, each over its own branches; return each one's result or fault.

    `models` are the branches of each training, on the same layers. A fault ends one client alone.
    """
    results: dict[int, T | Exception] = {}
    steps: dict[int, Step] = {}
    since = dict.fromkeys(range(len(trainings)), time.perf_counter())

    def resume(i: int, gradient: Gradient | Exception | None) -> None:
        """Let a training go on to its next step or to its end."""
        steps.pop(i, None)
        try:
            with models[i].running():
                if gradient is None:
                    steps[i] = next(trainings[i])
                elif isinstance(gradient, Exception):
                    trainings[i].throw(gradient)
                else:
                    steps[i] = trainings[i].send(gradient)
        except StopIteration as end:
            results[i] = end.value
        except Exception as error:  # of this client; the others go on
            results[i] = error
        since[i] = time.perf_counter()

    with ExitStack() as stack:
        for i, training in enumerate(trainings):
            stack.callback(training.close)
            resume(i, None)
        while steps:
            began = time.perf_counter()
            found = _gradients(steps, models)
            share = (time.perf_counter() - began) / len(steps)
            for i, one in found.items():
                waited = time.perf_counter() - since[i] - share
                resume(i, one if isinstance(one, Exception) else Gradient(*one, waited))
    return [results[i] for i in range(len(trainings))]


def _gradients(steps: Mapping[int, Step], models: Sequence[BranchedModel]) -> dict[int, Found]:
    """Set `.grad` as each step asks for. Losses other than -log p(token) are computed alone."""
    joint = {i: step for i, step in steps.items() if step.pack_loss is None}
    found: dict[int, Found] = {}
    if len(joint) > 1:
        try:
            found |= _gradients_at_once(joint, models)
        except Exception:  # of one client's rows, or of a layer that does not see all tokens
            logger.warning("clients at once: a pass failed, so each runs alone", exc_info=True)
    alone = {i: step for i, step in steps.items() if i not in found}
    return found | {i: _gradient_alone(step, models[i]) for i, step in alone.items()}


def _gradient_alone(step: Step, model: BranchedModel) -> Found:
    for parameter in step.parameters:
        parameter.grad = None
    try:
        with model.running():
            return gradient_of(step, model.model)
    except Exception as error:  # of this client
        return error


def _gradients_at_once(
    steps: Mapping[int, Step], models: Sequence[BranchedModel]
) -> dict[int, tuple[float, int]]:
    sums = dict.fromkeys(steps, 0.0)
    counts = {i: sum(map(supervised_tokens, step.rows)) for i, step in steps.items()}
    pack_tokens = max(step.pack_tokens for step in steps.values())
    for members in joint_passes({i: step.rows for i, step in steps.items()}, pack_tokens):
        packs = [(models[i], [steps[i].rows[k] for k in pack]) for i, pack in members]
        with running_packs(packs):
            losses = joint_losses(packs)
            torch.cat(losses).sum().backward()
        for (i, _), own in zip(members, losses, strict=True):
            sums[i] += float(own.detach().sum())
    for i, step in steps.items():
        divide_gradients(step.parameters, counts[i])
    return {i: (sums[i], counts[i]) for i in steps}
