"""The in-process engine: one base model, one client after another."""

import logging
from collections.abc import Callable, Iterator, Sequence

from fedsdr.errors import DiskError, UserError
from fedsdr.federation.round import RunClients
from fedsdr.federation.update_checks import decoded
from fedsdr.types import ClientFault, ClientTask, ClientUpdate

logger = logging.getLogger(__name__)


def in_process(train: Callable[[ClientTask], ClientUpdate]) -> RunClients:
    """Return an engine that calls `train` for each task in order, with one update in memory.

    A client that fails becomes a fault and the round goes on; a full disk ends the run. The text of
    an unexpected error may quote the data: it goes to the log, and the fault names its type alone.
    """

    def run_clients(tasks: Sequence[ClientTask]) -> Iterator[ClientUpdate | ClientFault]:
        for task in tasks:
            yield decoded(_answer(train, task), task)

    return run_clients


def _answer(
    train: Callable[[ClientTask], ClientUpdate], task: ClientTask
) -> ClientUpdate | ClientFault:
    try:
        return train(task)
    except DiskError:
        raise
    except UserError as error:
        logger.warning("client %s: %s", task.client_id, error)
        return ClientFault(task.client_id, task.round, str(error))
    except Exception as error:
        logger.exception("client %s failed in round %d", task.client_id, task.round)
        reason = f"{type(error).__name__} (the client's log has the details)"
        return ClientFault(task.client_id, task.round, reason)
