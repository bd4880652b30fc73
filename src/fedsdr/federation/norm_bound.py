"""The bound on an update's norm relative to the other updates of its round.

The median is known after the last update. Until then the updates wait in a temporary file without a
name, of which nothing remains after a kill; one of them is in memory at a time.
"""

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from fedsdr.federation.plan import Plan
from fedsdr.federation.round_log import RoundLog
from fedsdr.files import disk_errors_named
from fedsdr.tensors import Tensors, map_tensors, norm
from fedsdr.types import ClientUpdate

_MEMORY = 2**23  # bytes of waiting updates before they go to the disk


def within_norm_bound(
    updates: Iterable[ClientUpdate], plan: Plan, log: RoundLog
) -> Iterator[ClientUpdate]:
    """Yield the updates that `norms_too_large` allows, in order; record the others in `log`.

    Under central privacy every norm is at most the clipping norm, so the updates pass as they come.
    """
    if not plan.max_norm_ratio or plan.privacy.mode == "central":
        yield from updates
        return
    with tempfile.SpooledTemporaryFile(max_size=_MEMORY) as file:
        norms, waiting = {}, WaitingUpdates(file)
        for update in updates:
            norms[update.client_id] = norm(update.delta)
            waiting.add(update)
        reasons = norms_too_large(norms, plan)
        for update in waiting.read():
            if reason := reasons.get(update.client_id):
                log.refuse(update.client_id, reason)
            else:
                yield update


def norms_too_large(norms: Mapping[str, float], plan: Plan) -> dict[str, str]:
    """Return client -> reason for the updates that are far larger than the others of the round.

    With n_k = ||dR_k||, T_k the optimizer steps of an epoch over the examples that the client
    announced, and c = `plan.max_norm_ratio`, an update is too large if

        n_k > c median_j n_j    and    n_k / T_k > c median_j (n_j / T_j)

    The second condition spares a client with far more data than the others: a norm grows at most
    linearly with the steps. Fewer than three updates, or a median of 0, show nothing.
    """
    if len(norms) < 3:
        return {}
    batch = plan.settings.batch_size
    steps = {k: max(1, math.ceil(plan.announced.get(k, 1) / batch)) for k in norms}
    usual = median(norms.values())
    usual_per_step = median(size / steps[k] for k, size in norms.items())
    return {
        k: f"update has norm {size:.3g}, above federation.max_norm_ratio {plan.max_norm_ratio:g} "
        f"x {usual:.3g}, the median of the round"
        for k, size in norms.items()
        if 0 < plan.max_norm_ratio * usual < size
        and size / steps[k] > plan.max_norm_ratio * usual_per_step
    }


class WaitingUpdates:
    """Updates whose tensors wait in a temporary file, with one update in memory at a time."""

    def __init__(self, file: tempfile.SpooledTemporaryFile[bytes]) -> None:
        self._file = file
        self._updates: list[ClientUpdate] = []  # the values of their tensors are in the file
        self._without_values: dict[object, Tensors] = {}  # names and shapes, shared by updates

    def add(self, update: ClientUpdate) -> None:
        """Write one update to the file. DiskError when its disk is full."""
        with disk_errors_named(Path(tempfile.gettempdir())):
            delta, control = map(self._write, (update.delta, update.control_delta))
        self._updates.append(replace(update, delta=delta, control_delta=control))

    def read(self) -> Iterator[ClientUpdate]:
        """Yield the updates in the order in which they were added."""
        self._file.seek(0)
        for update in self._updates:
            delta, control = map(self._read, (update.delta, update.control_delta))
            yield replace(update, delta=delta, control_delta=control)

    def _write(self, tensors: Tensors) -> Tensors:
        """Return the tensors without their values, which go to the file."""
        for x in tensors.values():
            self._file.write(x.numpy().tobytes())
        names_and_shapes = tuple((name, x.shape) for name, x in tensors.items())
        if names_and_shapes not in self._without_values:
            meta = map_tensors(lambda x: x.to("meta"), tensors)
            self._without_values[names_and_shapes] = meta
        return self._without_values[names_and_shapes]

    def _read(self, tensors: Tensors) -> Tensors:
        def filled(x: Tensor) -> Tensor:
            values = torch.empty(x.shape, dtype=x.dtype)
            self._file.readinto(values.numpy().data)
            return values

        return map_tensors(filled, tensors)
