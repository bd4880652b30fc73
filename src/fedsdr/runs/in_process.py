"""The in-process engine: one base model, one client or a group of clients after another."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

from fedsdr.errors import DiskError, UserError
from fedsdr.federation.round import RunClients
from fedsdr.federation.update_checks import decoded
from fedsdr.types import ClientFault, ClientTask, ClientUpdate

logger = logging.getLogger(__name__)

Train = Callable[[Sequence[ClientTask]], Sequence[ClientUpdate | Exception]]
Groups = Callable[[Sequence[ClientTask]], Iterable[Sequence[ClientTask]]]


def in_process(train: Train, groups: Groups) -> RunClients:
    """Return an engine that calls `train` for each group of tasks in order.

    The updates of one group are in memory at a time. A client that fails becomes a fault and the
    round goes on; a full disk ends the run. The text of an unexpected error may quote the data: it
    goes to the log, and the fault names its type alone.
    """

    def run_clients(tasks: Sequence[ClientTask]) -> Iterator[ClientUpdate | ClientFault]:
        for group in groups(tasks):
            for task, found in zip(group, train(group), strict=True):
                answer = fault_of(found, task) if isinstance(found, Exception) else found
                yield decoded(answer, task)

    return run_clients


def fault_of(error: Exception, task: ClientTask) -> ClientFault:
    """Return the fault of a client that failed with `error`. Raises a DiskError."""
    if isinstance(error, DiskError):
        raise error
    if isinstance(error, UserError):
        logger.warning("client %s: %s", task.client_id, error)
        return ClientFault(task.client_id, task.round, str(error))
    logger.error("client %s failed in round %d", task.client_id, task.round, exc_info=error)
    reason = f"{type(error).__name__} (the client's log has the details)"
    return ClientFault(task.client_id, task.round, reason)
