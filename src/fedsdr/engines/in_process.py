"""The engine that needs nothing else: one process, one base model, one client after another."""

import logging
from collections.abc import Callable, Iterator, Sequence

from fedsdr.errors import UserError
from fedsdr.federation.round import RunClients
from fedsdr.types import ClientFault, ClientTask, ClientUpdate

logger = logging.getLogger(__name__)


def in_process(train: Callable[[ClientTask], ClientUpdate]) -> RunClients:
    """Return an engine that calls `train` for each task in order, holding one update at a time.

    A client that fails becomes a fault and the round goes on. What the server is told of an
    unforeseen error is its type alone, since its text may quote the data; the log here has it all.
    """

    def run_clients(tasks: Sequence[ClientTask]) -> Iterator[ClientUpdate | ClientFault]:
        for task in tasks:
            try:
                answer: ClientUpdate | ClientFault = train(task)
            except Exception as error:
                reason = str(error)
                if not isinstance(error, UserError):
                    logger.exception("client %s failed in round %d", task.client_id, task.round)
                    reason = f"{type(error).__name__} (the client's log has more)"
                answer = ClientFault(task.client_id, task.round, reason)
            yield answer

    return run_clients
