"""One client's local work in one round (paper, Eqs. 7 to 9, for every method)."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fedsdr.algorithms.corrections import Adjust, local_correction, new_control
from fedsdr.errors import choose
from fedsdr.models.branches import BranchedModel
from fedsdr.seeds import seed_for
from fedsdr.tensors import Tensors, subtract, zeros_like
from fedsdr.training.methods import METHODS, Phase
from fedsdr.training.step import PhaseResult, train_phase
from fedsdr.training.store import ClientStore
from fedsdr.types import Branch, ClientTask, ClientUpdate, LocalSettings, R, S, TokenRow


@dataclass(frozen=True)
class ClientRows:
    """A client's training rows as tokens; `rewritten` has one row for each of `raw`, or none."""

    raw: tuple[TokenRow, ...]
    rewritten: tuple[TokenRow, ...] = ()


def train_client(
    task: ClientTask,
    rows: ClientRows,
    model: BranchedModel,
    store: ClientStore,
    on_step: Callable[[int], None] | None = None,
) -> ClientUpdate:
    """Run the method's phases from the task's global tensors; return the change, keep S.

    The order of the data, dropout and S's start depend on `task.seed`, the client's name and the
    round alone, so the same task gives the same update anywhere.
    """
    settings = task.settings
    method = choose(settings.method, METHODS, "method.name")
    model.set(task.shared)
    remembers = bool(method.private or task.control)
    kept, control = store.load(task.accepted_round) if remembers else ({}, {})
    for branch in method.private:
        start = kept if kept and not settings.s_reset else {}
        model.set(start or model.initial(branch, seed_for(task.seed, "start", task.client_id)))
    control = control or zeros_like(task.control)
    adjust = local_correction(
        settings.correction,
        settings.mu,
        *(model.on_device(tensors) for tensors in (task.shared, task.control, control)),
    )
    metrics: dict[str, float] = {}
    steps: dict[Branch, int] = {}
    for phase in method.phases:
        if task.round < phase.first_round:
            continue
        began = time.perf_counter()
        result = _run_phase(phase, task, rows, model, adjust, on_step)
        steps[phase.train] = steps.get(phase.train, 0) + result.steps
        name = f"{phase.train}.{phase.data}"
        metrics |= {
            f"{name}.loss": result.loss,
            f"{name}.tokens": result.tokens,
            f"{name}.supervised": result.supervised,
            f"{name}.steps": result.steps,
            f"{name}.seconds": time.perf_counter() - began,
        }
    after = model.get(*method.sent)
    control_delta: Tensors = {}
    if task.control:
        new = dict(control)
        for branch in method.sent:
            own = [
                {n: v for n, v in t.items() if n.startswith(branch)}
                for t in (control, task.control, task.shared, after)
            ]
            new |= new_control(own[0], own[1], own[2], own[3], steps[branch], settings.lr)
        control_delta, control = subtract(new, control), new
    private = model.get(*method.private)
    if private or control:
        store.save(task.round, private, control, accepted=task.accepted_round)
    return ClientUpdate(
        client_id=task.client_id,
        round=task.round,
        num_examples=len(rows.raw),
        delta=subtract(after, task.shared),
        control_delta=control_delta,
        metrics=metrics,
    )


def _run_phase(
    phase: Phase,
    task: ClientTask,
    rows: ClientRows,
    model: BranchedModel,
    adjust: Adjust,
    on_step: Callable[[int], None] | None,
) -> PhaseResult:
    settings = task.settings
    seed = seed_for(task.seed, task.round, task.client_id, phase.train, phase.data)
    epochs = settings.smooth_epochs if phase.train == S and settings.smooth_epochs else 0
    coin = random.Random(seed_for(seed, "s_dropout"))

    def before_step() -> None:
        # R is trained beside S and served without it: for a share of the batches, S steps out.
        left_out = phase.train == R and coin.random() < settings.s_dropout
        model.switch.forward = (R,) if left_out else phase.forward

    torch.manual_seed(seed_for(seed, "dropout"))
    with model.using(
        *phase.forward,
        trained=phase.train,
        dropout=settings.lora_dropout,
        frozen_dropout=settings.frozen_dropout,
        weights=None if phase.share == 1.0 else dict.fromkeys(phase.forward, phase.share),
    ):
        return train_phase(
            model.model,
            model.parameters(phase.train),
            phase_rows(phase, rows, settings, task.client_id),
            settings,
            epochs=epochs or settings.local_epochs,
            seed=seed,
            adjust=adjust,
            before_step=before_step,
            on_step=on_step,
        )


def phase_rows(
    phase: Phase, rows: ClientRows, settings: LocalSettings, client_id: str
) -> tuple[TokenRow, ...]:
    """Return the rows that a phase reads. A mixture takes the rewrite of a seeded share of the
    rows and the raw answer of the others: the same rows every round."""
    if phase.data == "raw":
        return rows.raw
    if len(rows.rewritten) != len(rows.raw):
        raise ValueError(f"client {client_id} has no rewrites; distill before training")
    if phase.data == "rewritten":
        return rows.rewritten
    order = list(range(len(rows.raw)))
    random.Random(seed_for("mixture", client_id)).shuffle(order)
    rewrites = set(order[: round(settings.mixture * len(order))])
    return tuple(rows.rewritten[i] if i in rewrites else rows.raw[i] for i in range(len(rows.raw)))
