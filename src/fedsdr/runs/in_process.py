"""The engine that needs nothing else: one process, one base model, one client after another."""

import logging
from collections.abc import Callable, Iterator, Sequence

from fedsdr.errors import DiskError, UserError
from fedsdr.federation.round import RunClients
from fedsdr.types import ClientFault, ClientTask, ClientUpdate

logger = logging.getLogger(__name__)


def in_process(train: Callable[[ClientTask], ClientUpdate]) -> RunClients:
    """Return an engine that calls `train` for each task in order, holding one update at a time.

    A client that fails becomes a fault and the round goes on; a full disk ends the run. Of an
    unforeseen error the server is told the type alone, since its text may quote the data; the log
    here has it all.
    """

    def run_clients(tasks: Sequence[ClientTask]) -> Iterator[ClientUpdate | ClientFault]:
        for task in tasks:
            try:
                answer: ClientUpdate | ClientFault = train(task)
            except DiskError:
                raise
            except Exception as error:
                reason = str(error)
                if isinstance(error, UserError):
                    logger.warning("client %s: %s", task.client_id, reason)
                else:
                    logger.exception("client %s failed in round %d", task.client_id, task.round)
                    reason = f"{type(error).__name__} (the client's log has more)"
                answer = ClientFault(task.client_id, task.round, reason)
            yield answer

    return run_clients
