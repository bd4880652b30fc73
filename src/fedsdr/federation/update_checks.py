"""What an update must satisfy to be accepted."""

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from fedsdr.algorithms.compression import decode
from fedsdr.algorithms.learning_rate import with_rate_of
from fedsdr.federation.plan import Plan
from fedsdr.tensors import add, all_finite, difference_in_spec, norm
from fedsdr.types import (
    BRANCHES,
    DATA_KINDS,
    LOSS_KINDS,
    ClientFault,
    ClientTask,
    ClientUpdate,
    phase_name,
)

PHASE_METRICS = ("loss", "tokens", "forward_tokens", "supervised", "steps", "seconds")
MAX_EXAMPLES = 2**53  # of a client that announced nothing
METRIC_NAMES = frozenset(
    {
        "update.norm",
        *(
            f"{phase_name(branch, data, loss)}.{metric}"
            for branch, data, loss, metric in product(
                BRANCHES, DATA_KINDS, LOSS_KINDS, PHASE_METRICS
            )
        ),
    }
)


def decoded(answer: ClientUpdate | ClientFault, task: ClientTask) -> ClientUpdate | ClientFault:
    """Return the answer with its update in fp32, or a ClientFault that says why it is malformed.

    Every engine passes its answers through this function, so that the round sees fp32 alone.
    """
    if isinstance(answer, ClientFault):
        return answer
    try:
        delta = decode(answer.delta, task.shared, task.settings.update_dtype)
    except ValueError as error:
        return ClientFault(answer.client_id, answer.round, str(error))
    return replace(answer, delta=delta)


def rejection_reason(answer: ClientUpdate | ClientFault, task: ClientTask, plan: Plan) -> str:
    """Return why an answer cannot be accepted, in one line, or '' when it can.

    An update must be of the task's round, count between one and the announced number of examples,
    have exactly the names and shapes of the task's tensors in fp32 with finite values, stay within
    the norm limits, and report only finite metrics of `METRIC_NAMES`.
    """
    if isinstance(answer, ClientFault):
        return answer.reason
    if answer.round != task.round:
        return f"is of round {answer.round}, not of round {task.round}"
    return (
        _bad_count(answer, plan)
        or _bad_tensors(answer.delta, task.shared, "update")
        or _bad_tensors(answer.control_delta, task.control, "control")
        or _bad_metrics(answer.metrics)
        or _bad_norm(answer, task, plan)
    )


def _bad_count(update: ClientUpdate, plan: Plan) -> str:
    count = update.num_examples
    most = plan.announced.get(update.client_id, MAX_EXAMPLES)
    if not isinstance(count, int) or count < 1:
        return f"counts {count} examples; it must count at least 1"
    if count > most and not plan.is_private:
        return f"counts {count} examples, above the announced {most}"
    return ""


def _bad_tensors(values: Mapping[str, Tensor], like: Mapping[str, Tensor], what: str) -> str:
    if difference := difference_in_spec(values, like):
        return f"{what} {difference}"
    if all_finite(values):
        return ""
    name = next(name for name, x in values.items() if not bool(torch.isfinite(x).all()))
    return f"{what} '{name}' has a value that is not finite"


def _bad_metrics(metrics: Mapping[str, float]) -> str:
    for name, value in metrics.items():
        if name not in METRIC_NAMES:
            return f"has an unknown metric '{name[:40]}'"
        if not isinstance(value, int | float) or not math.isfinite(value):
            return f"metric '{name}' is {value}; it must be a finite number"
    return ""


def _bad_norm(update: ClientUpdate, task: ClientTask, plan: Plan) -> str:
    limits = {"federation.max_update_norm": plan.max_update_norm}
    if plan.privacy.mode == "central":  # clipping at the client is exact up to one rounding
        limits["privacy.clip_norm"] = plan.privacy.clip_norm * (1 + 1e-6)
    if not any(limits.values()) and not task.control:
        return ""
    size = norm(update.delta)
    for key, limit in limits.items():
        if limit and size > limit:
            return f"update has norm {size:.3g}, above {key} {limit:g}"
    if task.control and plan.settings.update_dtype == "fp32":
        # c_k+ - c_k + c = -dR / (steps * lr of the round), and a client takes at least one step.
        lr = with_rate_of(plan.settings, task.round).lr
        moved, most = norm(add(update.control_delta, task.control)), size / lr
        if moved > most * (1 + 1e-3) + 1e-6:
            return f"control has norm {moved:.3g}, above {most:.3g}, the most for this update"
    return ""
