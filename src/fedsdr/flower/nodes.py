"""Messages to the nodes of a Flower federation. Every wait has a deadline."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedsdr.errors import one_line
from fedsdr.federation.round import RunClients
from fedsdr.federation.update_checks import decoded
from fedsdr.flower.run_config import is_name
from fedsdr.flower.wire import (
    JoinReport,
    Report,
    answer_from_records,
    report_from_records,
    tasks_to_records,
)
from fedsdr.types import ClientFault, ClientTask, ClientUpdate

POLL_SECONDS = 0.5
JOIN_SECONDS = 60.0  # a connected node has to reply within this time: it reads its data first
MAX_ROWS = 10**9  # of a client: its number of rows is its weight


def run_message(run_id: str, node: int, kind: str, ttl: float | None = None) -> Message:
    """Return a message that is not a task: it says which run it belongs to and nothing else."""
    return Message(RecordDict({"run": ConfigRecord({"id": run_id})}), node, kind, ttl=ttl)


def replies(
    grid: Grid, messages: Mapping[str, Message], seconds: float
) -> Iterator[tuple[str, Message]]:
    """Send the messages; yield (key, reply) as replies arrive, until all are there or time is up.

    Replies already queued at the deadline are still yielded, however long the caller takes.
    """
    sent = set(grid.push_messages(list(messages.values())))  # without those of nodes that are gone
    keys = {message.metadata.message_id: key for key, message in messages.items()}
    waiting = {message_id: key for message_id, key in keys.items() if message_id in sent}
    deadline = time.monotonic() + seconds
    while waiting:
        late = time.monotonic() >= deadline
        arrived = list(grid.pull_messages(list(waiting)))
        for reply in arrived:
            if (key := waiting.pop(reply.metadata.reply_to_message_id, None)) is not None:
                yield key, reply
        if late and not arrived:
            return
        if waiting and not arrived:
            time.sleep(POLL_SECONDS)


def over_grid(grid: Grid, nodes: Mapping[str, int], seconds: float) -> RunClients:
    """Return an engine that sends each task to the node of its client, all at the same time.

    A client that is not connected, is late, or replies with anything but an update of its own
    becomes a fault. Answers are yielded in the order of the tasks.
    """

    def run_clients(tasks: Sequence[ClientTask]) -> Iterator[ClientUpdate | ClientFault]:
        sent = {task.client_id: task for task in tasks if task.client_id in nodes}
        records = tasks_to_records(list(sent.values()))
        messages = {
            name: Message(content, nodes[name], "train", ttl=seconds, group_id=str(task.round))
            for (name, task), content in zip(sent.items(), records, strict=True)
        }
        arriving = replies(grid, messages, seconds)
        answers: dict[str, ClientUpdate | ClientFault] = {}
        for task in tasks:
            name = task.client_id
            while name in sent and name not in answers and (reply := next(arriving, None)):
                answers[reply[0]] = _answer(sent[reply[0]], reply[1])
            late = f"no answer in {seconds:g} s (engine.round_seconds)"
            missing = ClientFault(name, task.round, late if name in sent else "is not connected")
            yield answers.pop(name, missing)

    return run_clients


def _answer(task: ClientTask, reply: Message) -> ClientUpdate | ClientFault:
    """Return a reply as an answer to this task. Whatever a site sends, the round continues."""
    if reply.has_error():
        return ClientFault(task.client_id, task.round, error_line(reply))
    try:
        answer = answer_from_records(reply.content)
        if answer.client_id != task.client_id:
            raise ValueError(f"it is in the name of '{one_line(answer.client_id, 60)}'")
        return decoded(answer, task)
    except Exception as error:
        reason = str(error) if isinstance(error, ValueError) else type(error).__name__
        return ClientFault(task.client_id, task.round, f"malformed answer: {reason}")


def error_line(reply: Message) -> str:
    """Return Flower's error reply in one line."""
    return f"Flower error {reply.error.code}: {one_line(str(reply.error.reason))}"


def report_of(reply: Message, kind: type[Report]) -> Report | str:
    """Return the report of a reply, or in one line why there is none.

    Whatever a site sends, the run continues.
    """
    if reply.has_error():
        return error_line(reply)
    try:
        report = report_from_records(reply.content, kind)
    except Exception as error:
        return one_line(f"malformed report: {error}")
    return one_line(report.reason) if isinstance(report, ClientFault) else report


@dataclass
class _Pending:
    """A node that has not said which client it is: since when, and when to ask it again."""

    since: float
    message_ids: list[str]
    ask_again: float


class Nodes:
    """The connected nodes and the client that each of them serves.

    A new node is asked for its client's name. A site that comes back, perhaps as another node, is
    the client of its name; of two nodes with one name, the one that joined last counts.

    `announced` has the number of training rows that each client reported when it joined; a site
    that may not report it (local privacy) counts as one row.
    """

    def __init__(self, grid: Grid, log: Callable[[str], None], run_id: str) -> None:
        self._grid, self._log, self._run_id = grid, log, run_id
        self._clients: dict[int, str] = {}  # node -> client, in the order of joining
        self._refused: set[int] = set()
        self._unrecorded: list[dict[str, object]] = []
        self._pending: dict[int, _Pending] = {}
        self.announced: dict[str, int] = {}

    @property
    def awaiting_names(self) -> bool:
        """Whether a node connected less than JOIN_SECONDS ago and has not said its name yet."""
        now = time.monotonic()
        return any(now - pending.since < JOIN_SECONDS for pending in self._pending.values())

    def poll(self, *, ask_refused: bool = False) -> dict[str, int]:
        """Ask new nodes for their names, read replies; return client -> node of those connected.

        A node whose message or reply was lost is asked again after JOIN_SECONDS, then after twice
        that, and so on. `ask_refused`: ask nodes that could not join once more, since their sites
        may have been fixed.
        """
        connected = set(self._grid.get_node_ids())
        self._clients = {node: c for node, c in self._clients.items() if node in connected}
        self._pending = {node: p for node, p in self._pending.items() if node in connected}
        self._refused &= set() if ask_refused else connected
        for node in sorted(connected - self._clients.keys() - self._refused):
            self._ask(node)
        waiting = {m: node for node, p in self._pending.items() for m in p.message_ids}
        for reply in self._grid.pull_messages(list(waiting)) if waiting else ():
            sender = waiting.get(reply.metadata.reply_to_message_id)
            if sender in self._pending:  # else it has replied to an earlier message
                del self._pending[sender]
                self._join(sender, report_of(reply, JoinReport))
        return {client: node for node, client in self._clients.items()}

    def take_refusals(self) -> list[dict[str, object]]:
        """Return the nodes that could not join since the last call, as in RoundRecord.refused."""
        refusals, self._unrecorded = self._unrecorded, []
        return refusals

    def _ask(self, node: int) -> None:
        now = time.monotonic()
        pending = self._pending.get(node)
        if pending and now < pending.ask_again:
            return
        since = pending.since if pending else now
        sent = list(self._grid.push_messages([run_message(self._run_id, node, "query.join")]))
        ids = [*(pending.message_ids if pending else ()), *sent]
        self._pending[node] = _Pending(since, ids, now + max(JOIN_SECONDS, now - since))

    def _join(self, node: int, report: JoinReport | str) -> None:
        if isinstance(report, JoinReport):
            report = _checked(report, self.announced.get(report.client))
        if isinstance(report, str):
            self._refused.add(node)
            self._unrecorded.append({"id": f"node {node}", "reason": f"cannot join: {report}"})
            self._log(f"node {node} cannot join: {report}")
            return
        self._clients[node] = report.client
        self.announced[report.client] = report.rows or 1
        rows = f" with {report.rows} rows" if report.rows else ""
        self._log(f"client '{report.client}' joined{rows}")


def _checked(report: JoinReport, before: int | None) -> JoinReport | str:
    """Return the report, or in one line why its node cannot join.

    `before` is the number that the client announced when it joined first: the weight of a client,
    whose data stay the same during a run, is not for it to change.
    """
    if not is_name(report.client):
        return f"{report.client[:60]!r} cannot be the name of a client"
    if not 0 <= report.rows <= MAX_ROWS:
        return f"client '{report.client}' reports {report.rows} training rows"
    if before not in (None, report.rows or 1):
        return f"client '{report.client}' reports {report.rows} training rows, {before} before"
    return report
