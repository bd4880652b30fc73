"""Messages to the nodes of a Flower federation, with an end to every wait."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedsdr.federation.round import RunClients
from fedsdr.federation.update_checks import decoded
from fedsdr.flower.wire import answer_from_records, task_to_records
from fedsdr.types import ClientFault, ClientTask, ClientUpdate

POLL_SECONDS = 0.5
NAME_SECONDS = 60.0  # a site that is connected has to say its name: it reads its data for that


def replies(
    grid: Grid, messages: Mapping[str, Message], seconds: float
) -> Iterator[tuple[str, Message]]:
    """Send, then yield (key, reply) as they come, until all are there or the time is over.

    What lies ready when the time is over counts: only the wait has an end, not what is done between
    two replies.
    """
    waiting = {
        message_id: key
        for key, message in messages.items()
        for message_id in grid.push_messages([message])  # none for a node that is gone
    }
    end = time.monotonic() + seconds
    while waiting:
        over = time.monotonic() >= end
        found = list(grid.pull_messages(list(waiting)))
        for reply in found:
            yield waiting.pop(reply.metadata.reply_to_message_id), reply
        if over and not found:
            return
        if waiting and not found:
            time.sleep(POLL_SECONDS)


def of_run(run_id: str) -> RecordDict:
    """Return what a message that is no task says: which run it is of."""
    return RecordDict({"run": ConfigRecord({"id": run_id})})


def over_grid(grid: Grid, nodes: Mapping[str, int], seconds: float) -> RunClients:
    """Return an engine that sends each task to the node of its client, all at once.

    A client that is not connected, is late, or answers with anything but an update of its own
    becomes a fault. Answers are given in the order of the tasks, as run_round wants them.
    """

    def run_clients(tasks: Sequence[ClientTask]) -> Iterator[ClientUpdate | ClientFault]:
        asked = {task.client_id: task for task in tasks if task.client_id in nodes}
        messages = {
            name: Message(
                task_to_records(task), nodes[name], "train", ttl=seconds, group_id=str(task.round)
            )
            for name, task in asked.items()
        }
        coming = replies(grid, messages, seconds)
        answers: dict[str, ClientUpdate | ClientFault] = {}
        for task in tasks:
            name = task.client_id
            while name in asked and name not in answers and (one := next(coming, None)):
                answers[one[0]] = _answer(asked[one[0]], one[1])
            late = f"no answer in {seconds:g} s (engine.round_seconds)"
            missing = ClientFault(name, task.round, late if name in asked else "is not connected")
            yield answers.pop(name, missing)

    return run_clients


def _answer(task: ClientTask, reply: Message) -> ClientUpdate | ClientFault:
    def fault(reason: str) -> ClientFault:
        return ClientFault(task.client_id, task.round, reason)

    if reply.has_error():
        return fault(error_line(reply))
    try:
        answer = answer_from_records(reply.content)
    except ValueError as error:
        return fault(f"its answer is malformed: {error}")
    except Exception as error:  # whatever a site sends, the round goes on
        return fault(f"its answer is malformed: {type(error).__name__}")
    if answer.client_id != task.client_id:
        return fault(f"answers in the name of '{answer.client_id}'")
    return decoded(answer, task)


def error_line(reply: Message) -> str:
    """Return what Flower says of an error, in one line."""
    return f"Flower error {reply.error.code}: {' '.join(str(reply.error.reason).split())[:200]}"


def told(reply: Message) -> dict[str, object]:
    """Return the few words and numbers of an answer that is no update; "fault" if it is one."""
    if reply.has_error():
        return {"fault": error_line(reply)}
    record = reply.content.get("told")
    return (
        dict(record) if isinstance(record, ConfigRecord) else {"fault": "its answer is malformed"}
    )


class Sites:
    """Who is connected: each new node is asked once for its name, and nobody waits for it.

    A site that comes back, perhaps as another node, is the client of its name; the node that
    joined last counts.
    """

    def __init__(self, grid: Grid, log: Callable[[str], None], run_id: str) -> None:
        self._grid, self._log, self._run_id = grid, log, run_id
        self._names: dict[int, str] = {}  # node -> client, in the order of joining
        self._asked: dict[str, tuple[int, float]] = {}  # message -> node, when
        self.announced: dict[str, int] = {}  # client -> its number of training examples

    @property
    def silent(self) -> bool:
        """Whether some were asked for their name a short while ago and have not answered yet."""
        now = time.monotonic()
        return any(now - since < NAME_SECONDS for _, since in self._asked.values())

    def look(self, again: bool = False) -> dict[str, int]:
        """Return client -> node of those that are connected now and have said their name.

        `again`: ask those once more that could not say it, since they may have been mended.
        """
        connected = set(self._grid.get_node_ids())
        self._names = {
            node: name
            for node, name in self._names.items()
            if node in connected and (name or not again)
        }
        self._asked = {m: asked for m, asked in self._asked.items() if asked[0] in connected}
        waiting = {node for node, _ in self._asked.values()}
        for node in sorted(connected - self._names.keys() - waiting):
            message = Message(of_run(self._run_id), node, "query.join")
            for message_id in self._grid.push_messages([message]):
                self._asked[message_id] = node, time.monotonic()
        for reply in self._grid.pull_messages(list(self._asked)) if self._asked else ():
            (node, _), said = self._asked.pop(reply.metadata.reply_to_message_id), told(reply)
            name = said.get("client")
            self._names[node] = name if isinstance(name, str) else ""
            rows = f" with {said['rows']} rows" if "rows" in said else ""
            if isinstance(name, str) and isinstance(said.get("rows"), int):
                self.announced[name] = said["rows"]  # type: ignore[assignment]
            self._log(
                f"client '{name}' joined{rows}"
                if name
                else f"node {node} cannot join: {said.get('fault')}"
            )
        return {name: node for node, name in self._names.items() if name}
