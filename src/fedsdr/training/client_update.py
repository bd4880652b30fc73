"""The work of a client in one round: load its state, train, save the state, return the update."""

from dataclasses import replace

from fedsdr.algorithms.compression import encode_with_feedback
from fedsdr.errors import Refusal, choose
from fedsdr.models.two_branch import BranchedModel
from fedsdr.tensors import all_finite
from fedsdr.training.client_store import ClientStore
from fedsdr.training.local_privacy import answered_update, with_privacy
from fedsdr.training.local_training import AfterStep, ClientRows, train_locally
from fedsdr.training.methods import METHODS, Method
from fedsdr.training.optimizer_step import Training, run_alone
from fedsdr.training.references import base_states, without_unlikely
from fedsdr.training.shared_factors import aggregation_of
from fedsdr.types import ClientTask, ClientUpdate


def client_update(
    task: ClientTask,
    rows: ClientRows,
    model: BranchedModel,
    store: ClientStore,
    after_step: AfterStep | None = None,
) -> ClientUpdate:
    """Run `client_training` alone."""
    return run_alone(client_training(task, rows, model, store, after_step), model.model)


def client_training(
    task: ClientTask,
    rows: ClientRows,
    model: BranchedModel,
    store: ClientStore,
    after_step: AfterStep | None = None,
) -> Training[ClientUpdate]:
    """Train the task and return its update, compressed as `settings.update_dtype` says.

    S, SCAFFOLD's c_k and the rounding error stay in `store`. Refusal when S diverged.
    """
    settings = task.settings
    noisy = settings.local_noise > 0
    if noisy and not settings.afterwards and (sent := answered_update(task, store)):
        return ClientUpdate(task.client_id, task.round, 1, sent, {})
    method = choose(settings.method, METHODS, "method.name")
    kept = method.private or aggregation_of(settings).kept
    has_state = kept or task.control or settings.update_dtype != "fp32"
    like = {n: p for branch in method.private for n, p in model.parameters(branch).items()}
    before = store.load(task.accepted_round if has_state else 0, like)
    rows = _with_base(rows, method, task, model, store)
    train = with_privacy(train_locally) if noisy or settings.clip_norm else train_locally
    result = yield from train(task, rows, model, before, after_step)
    if not all_finite(result.state.own):
        raise Refusal(f"client '{task.client_id}': what it keeps diverged; lower train.lr")
    delta, residual = encode_with_feedback(result.change, before.residual, settings.update_dtype)
    after = replace(result.state, residual=residual, sent=delta if noisy else {})
    if any((after.own, after.control, after.residual, after.sent)):
        store.save(task.round, after, accepted=task.accepted_round)
    return ClientUpdate(
        client_id=task.client_id,
        round=task.round,
        num_examples=result.num_examples,
        delta=delta,
        control_delta=result.control_delta,
        metrics=result.metrics,
    )


def _with_base(
    rows: ClientRows, method: Method, task: ClientTask, model: BranchedModel, store: ClientStore
) -> ClientRows:
    """Return the rows with what the base says of them, where a phase of the method needs it."""
    settings, pack_tokens = task.settings, task.settings.pack_tokens
    if any(phase.data == "masked" for phase in method.all_phases):
        masked = without_unlikely(model, rows.raw, settings.mask_perplexity, pack_tokens, store)
        rows = replace(rows, masked=masked)
    kinds = {phase.data for phase in method.all_phases if phase.loss.reference == ()}
    if not kinds:
        return rows
    anchored = [row for kind in sorted(kinds) for row in rows.of(kind)]
    return replace(rows, base_states=base_states(model, anchored, pack_tokens, store))
