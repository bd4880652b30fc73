"""Groups of clients that share forward passes, in training and in evaluation.

`engine.clients_at_once` is the size of a group: 1, n, or 0 for as many as fill a pack.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TypeVar

import torch

from fedsdr.evaluation.held_out import ClientScores, Infer
from fedsdr.models.forward_plan import uses_rows
from fedsdr.models.joint_packs import (
    MOST_AT_ONCE,
    joint_losses,
    joint_passes,
    running_packs,
)
from fedsdr.models.packing import supervised_tokens
from fedsdr.progress import Advance, counted, no_advance
from fedsdr.runs.client_runtime import ClientRuntime, training_at
from fedsdr.runs.client_scores import client_scores
from fedsdr.runs.served_models import Serving
from fedsdr.training.side_by_side import train_side_by_side
from fedsdr.types import (
    ClientData,
    ClientTask,
    ClientUpdate,
    Decoding,
    Example,
    Generation,
    GenerationRequest,
)

T = TypeVar("T")


def task_groups(
    runtime: ClientRuntime, by_id: Mapping[str, ClientData], tasks: Sequence[ClientTask]
) -> Iterator[list[ClientTask]]:
    """Yield the tasks in groups that are trained at once, in their order."""
    train = runtime.config.train

    def tokens(task: ClientTask) -> int:
        """Return the mean tokens of an optimizer step."""
        rows = runtime.encode(by_id[task.client_id].raw)
        share = min(1.0, train.batch_size / max(1, len(rows)))
        return round(share * sum(len(row.tokens) for row in rows))

    return _groups(tasks, _at_once(runtime), tokens, train.pack_tokens)


def client_groups(
    runtime: ClientRuntime, served: Iterable[tuple[ClientData, Serving]]
) -> Iterator[list[tuple[ClientData, Serving]]]:
    """Yield clients with their models in groups that are evaluated at once, in their order.

    Models whose branches are weighted by row (FedDPA) are evaluated alone, and so are those that
    are evaluated on the rows of every client (evaluation.transfer).
    """
    asked = runtime.config.evaluation
    at_once = 1 if runtime.method.mixed or asked.transfer else _at_once(runtime)
    room = asked.batch_size
    return _groups(served, at_once, lambda one: len(one[0].test), room)


def train_group(
    runtime: ClientRuntime,
    by_id: Mapping[str, ClientData],
    tasks: Sequence[ClientTask],
    after_step: Callable[[int, int], None],
) -> list[ClientUpdate | Exception]:
    """Do the work of several clients in one round at once; return each one's update or fault."""
    models = runtime.side_by_side(len(tasks))
    trainings = [
        training_at(runtime, by_id[task.client_id], task, model, after_step)
        for task, model in zip(tasks, models, strict=True)
    ]
    return train_side_by_side(trainings, models)


def evaluate_group(
    runtime: ClientRuntime,
    served: Sequence[tuple[ClientData, Serving]],
    infer: Infer | None = None,
    advance: Advance = no_advance,
) -> dict[str, ClientScores]:
    """Measure each client's own model on its test rows; all rows share the batches.

    `infer`: see `evaluate_on`. Each answer advances `advance`.
    """
    config, models = runtime.config, runtime.side_by_side(len(served))
    owners = [model for (client, _), model in zip(served, models, strict=True) for _ in client.test]

    def losses(examples: Sequence[Example]) -> list[tuple[float, int]]:
        rows = runtime.encode(examples)
        places = [[i for i, owner in enumerate(owners) if owner is model] for model in models]
        sums = [0.0] * len(rows)
        by_client = {k: [rows[i] for i in own] for k, own in enumerate(places)}
        for members in joint_passes(by_client, config.train.pack_tokens):
            packs = [(models[k], [by_client[k][j] for j in pack]) for k, pack in members]
            with running_packs(packs), torch.inference_mode():
                found = joint_losses(packs)
            for (k, pack), own in zip(members, found, strict=True):
                for j, loss in zip(pack, own.tolist(), strict=True):
                    sums[places[k][j]] = loss
        return [(s, supervised_tokens(row)) for s, row in zip(sums, rows, strict=True)]

    def generate(requests: Sequence[GenerationRequest], decoding: Decoding) -> Iterator[Generation]:
        by_request = dict(zip((request.id for request in requests), owners, strict=True))
        return runtime.generate(config.evaluation.batch_size, by_request)(requests, decoding)

    with ExitStack() as stack:
        for model, (_, serving) in zip(models, served, strict=True):
            model.set(serving.values)
            stack.enter_context(model.using(*serving.branches))
        clients = [client for client, _ in served]
        answer = counted(generate, advance)
        return client_scores(config, clients, served[0][1].branches, losses, answer, infer)


def _at_once(runtime: ClientRuntime) -> int:
    """Return engine.clients_at_once; 1 for a model whose rows cannot share a pass."""
    return runtime.config.engine.clients_at_once if uses_rows(runtime.base.model) else 1


def _groups(
    items: Iterable[T], at_once: int, size: Callable[[T], int], room: int
) -> Iterator[list[T]]:
    """Yield groups of `at_once` items, or for 0 of as many as have at most the size `room`."""
    group: list[T] = []
    left = room
    for item in items:
        taken = 0 if at_once else size(item)
        if group and (len(group) == (at_once or MOST_AT_ONCE) or taken > left):
            yield group
            group, left = [], room
        group.append(item)
        left -= taken
    if group:
        yield group
