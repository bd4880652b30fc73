"""Local training of one client in one round (paper, Eqs. 7 to 9, for every method).

Start from the task's R and the client's own S, run the method's phases, return the change of R.
Clipping, noise, compression and storage are around it, in client_update.py and local_privacy.py.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from fedsdr.algorithms.client_corrections import Adjust, local_correction, new_control
from fedsdr.algorithms.learning_rate import with_rate_of
from fedsdr.errors import choose
from fedsdr.models.two_branch import BranchedModel
from fedsdr.seeds import seed_for
from fedsdr.tensors import Tensors, subtract, zeros_like
from fedsdr.training.client_store import ClientState
from fedsdr.training.methods import METHODS, Method, Phase
from fedsdr.training.optimizer_step import PackLoss, PhaseResult, Training, phase_steps
from fedsdr.training.pack_losses import States, pack_loss
from fedsdr.training.references import states_of
from fedsdr.training.shared_factors import (
    cut_to,
    starting_factors,
    trained_parameters,
    unsent_factors,
)
from fedsdr.types import Branch, ClientTask, DataKind, LocalSettings, R, S, TokenRow

AfterStep = Callable[[int, int], None]  # is given the rows and tokens of each optimizer step


@dataclass(frozen=True)
class ClientRows:
    """A client's training rows as tokens; `rewritten` has one row for each of `raw`, or none.

    `masked` are the raw rows without the tokens that the base finds unlikely, `base_states` what
    the base says of the rows of phases with an anchored loss (references.py).
    """

    raw: tuple[TokenRow, ...]
    rewritten: tuple[TokenRow, ...] = ()
    masked: tuple[TokenRow, ...] = ()
    base_states: States = field(default_factory=dict)

    def of(self, kind: DataKind) -> tuple[TokenRow, ...]:
        """Return the rows of one kind of data; of a mixture those of both kinds."""
        by_kind = {"raw": self.raw, "rewritten": self.rewritten, "masked": self.masked}
        return by_kind.get(kind, (*self.raw, *self.rewritten))


@dataclass(frozen=True)
class LocalResult:
    """What local training returns.

    `change` is dR = R_after - R_before of the branches that the method sends, `state` what the
    client keeps, `control_delta` SCAFFOLD's c_k+ - c_k.
    """

    change: Tensors
    state: ClientState
    num_examples: int
    control_delta: Tensors = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


LocalTraining = Callable[
    [ClientTask, ClientRows, BranchedModel, ClientState, AfterStep | None], Training[LocalResult]
]


def train_locally(
    task: ClientTask,
    rows: ClientRows,
    model: BranchedModel,
    state: ClientState,
    after_step: AfterStep | None = None,
) -> Training[LocalResult]:
    """Run the method's phases from the task's R and the client's S; return the change of R.

    The order of the rows, dropout and the first S depend on `task.seed`, the client's name and the
    round alone: the same task and state give the same result on any engine.
    """
    task = replace(task, settings=with_rate_of(task.settings, task.round))
    settings = task.settings
    method = choose(settings.method, METHODS, "method.name")
    start = starting_factors(task, method, model, state.unsent)
    model.set(start)
    received = {name: start[name] for name in task.shared}
    for branch in method.private:
        kept = {} if settings.s_reset else state.private
        model.set(kept or model.initial(branch, seed_for(task.seed, "start", task.client_id)))
    control = state.control or zeros_like(task.control)
    adjust = local_correction(
        settings.correction,
        settings.mu,
        *(model.on_device(tensors) for tensors in (received, task.control, control)),
    )
    metrics: dict[str, float] = {}
    steps: dict[Branch, int] = {}
    for phase in phases_of(method, task):
        began = time.perf_counter()
        result = yield from _run_phase(phase, task, rows, model, adjust, after_step)
        steps[phase.train] = steps.get(phase.train, 0) + result.steps
        metrics |= _phase_metrics(phase, result, time.perf_counter() - began - result.waited)
        if forward := _forward_tokens(phase, task, rows):
            metrics[f"{phase.name}.forward_tokens"] = forward
    after = {} if settings.afterwards else model.get(*method.sent)
    sent = cut_to(after, task.shared) if after else {}
    new = _new_control(task, control, sent, steps) if task.control else {}
    unsent = unsent_factors(task, after) if after else state.unsent
    return LocalResult(
        change=subtract(sent, task.shared) if sent else {},
        state=ClientState(model.get(*method.private), new or control, unsent=unsent),
        num_examples=len(rows.raw),
        control_delta=subtract(new, control) if new else {},
        metrics=metrics,
    )


def phases_of(method: Method, task: ClientTask) -> list[Phase]:
    """Return the phases of this task. A returning phase needs an accepted update of the client."""
    if task.settings.afterwards:
        return list(method.afterwards)
    return [phase for phase in method.phases if task.accepted_round or not phase.returning]


def epochs_of(phase: Phase, settings: LocalSettings) -> int:
    """Return the number of passes over the data in a phase."""
    smooth = settings.smooth_epochs if phase.train == S else 0
    return smooth or settings.local_epochs


def rows_to_train(task: ClientTask, num_examples: int) -> int:
    """Return the number of rows in all optimizer steps of the task, for a progress bar."""
    method = choose(task.settings.method, METHODS, "method.name")
    phases = phases_of(method, task)
    return num_examples * sum(epochs_of(phase, task.settings) for phase in phases)


def _run_phase(
    phase: Phase,
    task: ClientTask,
    rows: ClientRows,
    model: BranchedModel,
    adjust: Adjust,
    after_step: AfterStep | None,
) -> Training[PhaseResult]:
    settings = task.settings
    seed = seed_for(task.seed, task.round, task.client_id, phase.train, phase.data)
    coin = random.Random(seed_for(seed, "s_dropout"))
    data = phase_rows(phase, rows, settings, seed_for(task.seed, task.client_id))
    loss = _loss_of(phase, data, rows.base_states, model, settings)

    def before_step() -> None:
        # R is trained with S in the forward and served without it: s_dropout closes the gap.
        without_s = phase.train == R and coin.random() < settings.s_dropout
        model.switch.forward = (R,) if without_s else phase.forward

    generator = torch.Generator(next(model.model.parameters()).device)
    with model.using(
        *phase.forward,
        trained=phase.train,
        dropout=settings.lora_dropout,
        weights=None if phase.share == 1.0 else dict.fromkeys(phase.forward, phase.share),
        generator=generator.manual_seed(seed_for(seed, "dropout")),
    ):
        return (
            yield from phase_steps(
                trained_parameters(phase.train, model, settings),
                data,
                settings,
                epochs=epochs_of(phase, settings),
                seed=seed,
                pack_loss=loss,
                adjust=adjust,
                before_step=before_step,
                after_step=after_step,
            )
        )


def _loss_of(
    phase: Phase,
    data: Sequence[TokenRow],
    base_states: States,
    model: BranchedModel,
    settings: LocalSettings,
) -> PackLoss | None:
    """Return the phase's loss, None for the plain one; a reference other than the base reads the
    rows now."""
    loss = phase.loss
    if loss.reference is None or loss.token_losses is None:
        return None
    states = base_states
    if loss.reference:
        states = states_of(model, data, settings.pack_tokens, *loss.reference)
    return pack_loss(loss.token_losses, model, states, settings)


def _forward_tokens(phase: Phase, task: ClientTask, rows: ClientRows) -> int:
    """Return the tokens that a reference model reads: the base once a client, others every time."""
    if task.accepted_round if phase.reads_base else not phase.loss.reference:
        return 0
    return sum(len(row.tokens) for row in rows.raw)


def _phase_metrics(phase: Phase, result: PhaseResult, seconds: float) -> dict[str, float]:
    loss = {f"{phase.name}.loss": result.loss} if result.supervised else {}  # no tokens, no mean
    return loss | {
        f"{phase.name}.tokens": result.tokens,
        f"{phase.name}.supervised": result.supervised,
        f"{phase.name}.steps": result.steps,
        f"{phase.name}.seconds": seconds,
    }


def _new_control(
    task: ClientTask, control: Tensors, after: Tensors, steps: dict[Branch, int]
) -> Tensors:
    """Return SCAFFOLD's c_k+, branch by branch: each branch has taken steps of its own."""
    new: Tensors = {}
    for branch in dict.fromkeys(name[0] for name in after):
        c_k, c, before, now = (
            {name: value for name, value in tree.items() if name.startswith(branch)}
            for tree in (control, task.control, task.shared, after)
        )
        new |= new_control(c_k, c, before, now, steps[branch], task.settings.lr)  # type: ignore[index]
    return new


def phase_rows(
    phase: Phase, rows: ClientRows, settings: LocalSettings, seed: int
) -> tuple[TokenRow, ...]:
    """Return the rows that a phase reads.

    A mixture takes the rewrite of a seeded share of the rows and the raw answer of the others, the
    same rows in every round. ValueError when the rewrites are missing.
    """
    if phase.data in ("raw", "masked"):
        return rows.of(phase.data)
    if len(rows.rewritten) != len(rows.raw):
        raise ValueError("there are no rewrites; distill before training")
    if phase.data == "rewritten":
        return rows.rewritten
    order = list(range(len(rows.raw)))
    random.Random(seed_for(seed, "mixture")).shuffle(order)
    rewrites = set(order[: round(settings.mixture * len(order))])
    return tuple(rows.rewritten[i] if i in rewrites else rows.raw[i] for i in range(len(rows.raw)))
