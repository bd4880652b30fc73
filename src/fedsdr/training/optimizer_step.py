"""Train a set of parameters on token rows: batches, gradient accumulation over packs, steps.

The loss of a step is the mean over the supervised tokens of its batch, however its rows are packed:
packing changes the speed, not the mathematics.

Training is a generator that yields each `Step` and is sent its `Gradient`: whoever drives it runs
the model, for one client (`run_alone`) or for several at once (side_by_side.py).
"""

import random
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from torch import Tensor, nn

from fedsdr.algorithms.client_corrections import Adjust
from fedsdr.models.packing import pack, row_losses, supervised_tokens
from fedsdr.training.optimizers import optimizer_of
from fedsdr.types import LocalSettings, TokenRow

PackLoss = Callable[[Sequence[TokenRow]], Tensor]  # rows of one forward pass -> their summed loss
T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """The rows of one optimizer step, for the gradient of `parameters`."""

    parameters: Sequence[nn.Parameter]
    rows: Sequence[TokenRow]
    pack_tokens: int
    pack_loss: PackLoss | None = None


class Gradient(NamedTuple):
    """`.grad` is set: summed loss in nats, supervised tokens, seconds spent on other clients."""

    loss_sum: float
    supervised: int
    waited: float = 0.0


Training = Generator[Step, Gradient, T]


@dataclass(frozen=True)
class PhaseResult:
    """Counts of one phase. `loss` is the mean per supervised token over the last epoch, in nats."""

    loss: float
    tokens: int
    supervised: int
    steps: int
    waited: float = 0.0


def gradient_of(step: Step, model: nn.Module) -> tuple[float, int]:
    """Compute one step's gradient as `accumulate_gradients` does."""
    return accumulate_gradients(model, step.parameters, step.rows, step.pack_tokens, step.pack_loss)


def run_alone(training: Training[T], model: nn.Module) -> T:
    """Run a training over `model` and return its result."""
    with closing(training):
        try:
            step = next(training)
            while True:
                step = training.send(Gradient(*gradient_of(step, model)))
        except StopIteration as end:
            result: T = end.value
            return result


def batches(
    rows: Sequence[TokenRow], batch_size: int, epochs: int, seed: int
) -> Iterator[tuple[int, list[TokenRow]]]:
    """Yield (epoch, rows of one optimizer step); every epoch shuffles all rows anew."""
    rng = random.Random(seed)
    order = list(range(len(rows)))
    for epoch in range(epochs):
        rng.shuffle(order)
        for start in range(0, len(order), batch_size):
            yield epoch, [rows[i] for i in order[start : start + batch_size]]


def accumulate_gradients(
    model: nn.Module,
    parameters: Iterable[nn.Parameter],
    rows: Sequence[TokenRow],
    pack_tokens: int,
    pack_loss: PackLoss | None = None,
) -> tuple[float, int]:
    """Set `.grad` of `parameters` to the gradient of the mean loss per supervised token of `rows`.

    Gradients must be None before. Rows without supervised tokens are skipped. Without `pack_loss`
    the loss is -log p of the tokens. Returns (summed loss in nats, supervised tokens).
    """
    rows = [row for row in rows if supervised_tokens(row)]
    total = sum(supervised_tokens(row) for row in rows)
    loss_sum = 0.0
    for group in pack(rows, pack_tokens):
        members = [rows[i] for i in group]
        loss = pack_loss(members) if pack_loss else row_losses(model, members).sum()
        loss.backward()
        loss_sum += float(loss.detach())
    # Divide the gradients, not the loss: a small factor on the loss would underflow in fp16.
    divide_gradients(parameters, total)
    return loss_sum, total


def divide_gradients(parameters: Iterable[nn.Parameter], total: int) -> None:
    """Divide the summed gradients by the number of supervised tokens."""
    for p in parameters:
        if p.grad is not None:
            p.grad /= total


def phase_steps(
    parameters: Mapping[str, nn.Parameter],
    rows: Sequence[TokenRow],
    settings: LocalSettings,
    *,
    epochs: int,
    seed: int,
    pack_loss: PackLoss | None = None,
    adjust: Adjust | None = None,
    before_step: Callable[[], None] | None = None,
    after_step: Callable[[int, int], None] | None = None,
) -> Training[PhaseResult]:
    """Train `parameters` in place with a new optimizer; its state is discarded.

    `pack_loss` as in `accumulate_gradients`. `adjust` corrects each gradient (FedProx, SCAFFOLD)
    before the norm is clipped to `max_grad_norm`. `before_step` may change the forward;
    `after_step` gets the numbers of rows and tokens.
    """
    optimizer = optimizer_of(parameters.values(), settings)
    tokens = supervised = steps = 0
    waited = 0.0
    last_sum, last_count = 0.0, 0
    for epoch, batch in batches(rows, settings.batch_size, epochs, seed):
        if before_step:
            before_step()
        optimizer.zero_grad(set_to_none=True)
        loss_sum, count, others = yield Step(
            tuple(parameters.values()), batch, settings.pack_tokens, pack_loss
        )
        waited += others
        if count:
            if adjust:
                for name, p in parameters.items():
                    if p.grad is not None:
                        adjust(name, p.grad, p.detach())
            if settings.max_grad_norm > 0:
                nn.utils.clip_grad_norm_(parameters.values(), settings.max_grad_norm)
            optimizer.step()
            steps += 1
        read = sum(len(row.tokens) for row in batch)
        tokens, supervised = tokens + read, supervised + count
        if epoch == epochs - 1:
            last_sum, last_count = last_sum + loss_sum, last_count + count
        if after_step:
            after_step(len(batch), read)
    loss = last_sum / last_count if last_count else float("nan")
    return PhaseResult(loss, tokens, supervised, steps, waited)
