"""Differential privacy at the client: a wrapper around local training.

Every update is clipped to `clip_norm`. With `local_noise` the server is not trusted: the client
adds Gaussian noise itself and reports neither counts nor metrics (docs/privacy.md).
"""

from dataclasses import replace

from fedsdr.algorithms.gaussian_mechanism import add_gaussian, clip
from fedsdr.errors import Refusal
from fedsdr.models.two_branch import BranchedModel
from fedsdr.tensors import Tensors, all_finite, map_tensors, norm
from fedsdr.training.client_store import ClientState, ClientStore
from fedsdr.training.local_training import AfterStep, ClientRows, LocalResult, LocalTraining
from fedsdr.training.optimizer_step import Training
from fedsdr.types import ClientTask


def with_privacy(train: LocalTraining) -> LocalTraining:
    """Return local training whose update is clipped and, with `local_noise`, covered by noise.

    Refusal when control variates are asked for, since the noise does not cover them.
    """

    def private(
        task: ClientTask,
        rows: ClientRows,
        model: BranchedModel,
        state: ClientState,
        after_step: AfterStep | None,
    ) -> Training[LocalResult]:
        if task.control or task.settings.correction == "scaffold":
            raise Refusal("privacy.mode: control variates are asked for, which no noise covers")
        result = yield from train(task, rows, model, state, after_step)
        if task.settings.local_noise:
            return _noisy(result, state, task)
        if not result.change:
            return result
        metrics = result.metrics | {"update.norm": norm(result.change)}
        change = clip(result.change, task.settings.clip_norm)
        return replace(result, change=change, metrics=metrics)

    return private


def _noisy(result: LocalResult, before: ClientState, task: ClientTask) -> LocalResult:
    # Whether training diverged depends on the rows, so the update must not show it.
    state = result.state
    if not all_finite(state.own):
        state = replace(state, private=before.private, unsent=before.unsent)
    change = map_tensors(lambda x: x.nan_to_num(0.0, 0.0, 0.0), result.change)
    change = add_gaussian(clip(change, task.settings.clip_norm), task.settings.local_noise)
    return LocalResult(change, state, num_examples=1)


def answered_update(task: ClientTask, store: ClientStore) -> Tensors:
    """Return the noisy update that was sent for this round before, or {} when there is none.

    A round is answered once: the same update with fresh noise would reveal more, the same bytes
    reveal nothing new. Refusal when a later round was answered.
    """
    newest = store.newest()
    if task.round > newest:
        return {}
    if task.round < newest:
        raise Refusal(
            f"round {task.round} is asked for after round {newest} was answered; with local noise "
            "the rounds of a site only increase"
        )
    sent = store.load(newest).sent
    if not sent:
        raise Refusal(f"round {newest} was answered before, and that answer is gone")
    return sent
