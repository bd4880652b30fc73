"""One client's local work in one round (paper, Eqs. 7 to 9, for every method)."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fedsdr.algorithms.client_corrections import Adjust, local_correction, new_control
from fedsdr.algorithms.compression import encode_with_feedback
from fedsdr.algorithms.gaussian_mechanism import add_gaussian, clip
from fedsdr.errors import Refusal, choose
from fedsdr.models.two_branch import BranchedModel
from fedsdr.seeds import seed_for
from fedsdr.tensors import Tensors, map_tensors, norm, subtract, zeros_like
from fedsdr.training.client_store import ClientStore, Kept
from fedsdr.training.methods import METHODS, Method, Phase
from fedsdr.training.optimizer_step import PhaseResult, train_phase
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
    after_step: Callable[[int], None] | None = None,
) -> ClientUpdate:
    """Run the method's phases from the task's global tensors; return the change of R, encoded;
    keep S and what the encoding rounded away.

    The order of the data, dropout and S's start depend on `task.seed`, the client's name and the
    round alone, so that the same task and the same state kept give the same update anywhere, but
    for local noise, which is drawn anew. `after_step` is told the rows of each optimizer step; in
    all they are `rows_to_train`.
    """
    settings = task.settings
    method = choose(settings.method, METHODS, "method.name")
    if settings.clip_norm and (task.control or settings.correction == "scaffold"):
        raise Refusal("privacy.mode: control variates are asked for, which no noise covers")
    answers = settings.local_noise and not settings.afterwards  # nothing is sent then
    if answers and (answered := _answered(task, store)):
        return ClientUpdate(task.client_id, task.round, 1, answered, {})
    model.set(task.shared)
    remembers = bool(method.private or task.control or settings.update_dtype != "fp32")
    kept = store.load(task.accepted_round if remembers else 0)
    for branch in method.private:
        start = {} if settings.s_reset else kept.private
        model.set(start or model.initial(branch, seed_for(task.seed, "start", task.client_id)))
    control = kept.control or zeros_like(task.control)
    adjust = local_correction(
        settings.correction,
        settings.mu,
        *(model.on_device(tensors) for tensors in (task.shared, task.control, control)),
    )
    metrics: dict[str, float] = {}
    steps: dict[Branch, int] = {}
    for phase in phases_of(method, task):
        began = time.perf_counter()
        result = _run_phase(phase, task, rows, model, adjust, after_step)
        steps[phase.train] = steps.get(phase.train, 0) + result.steps
        name = phase.name
        metrics |= {
            f"{name}.loss": result.loss,
            f"{name}.tokens": result.tokens,
            f"{name}.supervised": result.supervised,
            f"{name}.steps": result.steps,
            f"{name}.seconds": time.perf_counter() - began,
        }
    sent = () if settings.afterwards else method.sent
    after = model.get(*sent)
    control_delta: Tensors = {}
    if task.control:
        new = dict(control)
        for branch in sent:
            c_k, c, before, now = (
                {name: value for name, value in tree.items() if name.startswith(branch)}
                for tree in (control, task.control, task.shared, after)
            )
            new |= new_control(c_k, c, before, now, steps[branch], settings.lr)
        control_delta, control = subtract(new, control), new
    private = model.get(*method.private)
    diverged = not all(bool(value.isfinite().all()) for value in private.values())
    if diverged and settings.local_noise:
        private = kept.private  # whether it diverged depends on the rows, so it must not show
    elif diverged:
        raise Refusal(f"client '{task.client_id}': its private branch diverged; lower train.lr")
    change = subtract(after, task.shared) if sent else {}
    if settings.local_noise:  # nor whether R did
        change = map_tensors(lambda x: x.nan_to_num(0.0, 0.0, 0.0), change)
    if settings.clip_norm and sent:
        metrics["update.norm"] = norm(change)
        change = clip(change, settings.clip_norm)
    if settings.local_noise:  # the server is not trusted: it learns no counts either
        change, metrics = add_gaussian(change, settings.local_noise), {}
    delta, residual = encode_with_feedback(change, kept.residual, settings.update_dtype)
    keep = Kept(private, control, residual, delta if settings.local_noise else {})
    if any(keep):
        store.save(task.round, keep, accepted=task.accepted_round)
    return ClientUpdate(
        client_id=task.client_id,
        round=task.round,
        num_examples=1 if settings.local_noise else len(rows.raw),
        delta=delta,
        control_delta=control_delta,
        metrics=metrics,
    )


def _answered(task: ClientTask, store: ClientStore) -> Tensors:
    """Return what was sent for this round already, {} where nothing was: the same again tells
    nothing new, fresh noise on the same update would. Refusal when a later round was answered."""
    newest = store.newest()
    if task.round > newest:
        return {}
    if task.round < newest:
        raise Refusal(
            f"round {task.round} is asked for after round {newest} was answered; with local noise "
            "a site goes forward only"
        )
    sent = store.load(newest).sent
    if not sent:
        raise Refusal(f"round {newest} was answered already, and that answer is gone")
    return sent


def phases_of(method: Method, task: ClientTask) -> list[Phase]:
    """Return the phases of this task: some wait until an update of the client was counted."""
    if task.settings.afterwards:
        return list(method.afterwards)
    return [phase for phase in method.phases if task.accepted_round or not phase.returning]


def epochs_of(phase: Phase, settings: LocalSettings) -> int:
    """Return the passes over the data in a phase."""
    smooth = settings.smooth_epochs if phase.train == S else 0
    return smooth or settings.local_epochs


def rows_to_train(task: ClientTask, num_examples: int) -> int:
    """Return how many rows the task's optimizer steps take in all, for a bar with the time left."""
    method = choose(task.settings.method, METHODS, "method.name")
    phases = phases_of(method, task)
    return num_examples * sum(epochs_of(phase, task.settings) for phase in phases)


def _run_phase(
    phase: Phase,
    task: ClientTask,
    rows: ClientRows,
    model: BranchedModel,
    adjust: Adjust,
    after_step: Callable[[int], None] | None,
) -> PhaseResult:
    settings = task.settings
    seed = seed_for(task.seed, task.round, task.client_id, phase.train, phase.data)
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
            phase_rows(phase, rows, settings, seed_for(task.seed, task.client_id)),
            settings,
            epochs=epochs_of(phase, settings),
            seed=seed,
            adjust=adjust,
            before_step=before_step,
            after_step=after_step,
        )


def phase_rows(
    phase: Phase, rows: ClientRows, settings: LocalSettings, seed: int
) -> tuple[TokenRow, ...]:
    """Return the rows that a phase reads. A mixture takes the rewrite of a seeded share of the
    rows and the raw answer of the others: the same rows every round. ValueError when there are
    no rewrites to read."""
    if phase.data == "raw":
        return rows.raw
    if len(rows.rewritten) != len(rows.raw):
        raise ValueError("there are no rewrites; distill before training")
    if phase.data == "rewritten":
        return rows.rewritten
    order = list(range(len(rows.raw)))
    random.Random(seed_for(seed, "mixture")).shuffle(order)
    rewrites = set(order[: round(settings.mixture * len(order))])
    return tuple(rows.rewritten[i] if i in rewrites else rows.raw[i] for i in range(len(rows.raw)))
