"""A Flower grid in this process: no Ray and no SuperLink, but every message is sent as bytes."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.task_identity import TaskIdentity

NAMES = ("bank", "clinic", "school")


def nodes_of(data: Path, sites: Path) -> dict[int, dict]:
    """Return three nodes as their sites configure them."""
    return {
        100 + i: {
            "client": name,
            "data": str(data / f"{name}.jsonl"),
            "state-dir": str(sites / name),
        }
        for i, name in enumerate(NAMES)
    }


def checkpoint_of(out: Path) -> dict[str, object]:
    """Return the files of a checkpoint without the hash of rounds.jsonl, where refusals differ, and
    without the name of the run, since a server's configuration has no data."""
    files: dict[str, object] = {
        path.name: path.read_bytes() for path in (out / "checkpoint").rglob("*.safetensors")
    }
    for path in (out / "checkpoint").rglob("state.json"):
        files["state.json"] = {**json.loads(path.read_text()), "chain": None, "run": None}
    return files


def records_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]


class FakeGrid:
    """The `grid` of a ServerApp. `nodes` is node id -> node configuration.

    `answer(grid, message, context)` is what a node does: it returns the reply, or None for no
    reply; an exception becomes Flower's error reply. `wire` has the bytes of every message.
    """

    def __init__(
        self,
        app: ClientApp | None,
        nodes: dict[int, dict],
        run_config: dict,
        answer: Callable = lambda grid, message, context: grid.app(message, context),
    ) -> None:
        self.app, self.nodes, self.run_config, self.answer = app, nodes, run_config, answer
        self.wire: list[bytes] = []
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self._replies: dict[str, Message | None] = {}

    def get_node_ids(self) -> Iterable[int]:
        return sorted(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())
            node = message.metadata.dst_node_id
            if node not in self.nodes:
                continue
            ids.append(message.metadata.message_id)
            reply = self._at_node(self._send(message), node)
            self._replies[ids[-1]] = reply and self._send(reply)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        # The last one first: the order of arrival must not matter.
        found = [self._replies.pop(m, None) for m in reversed(list(message_ids))]
        return [reply for reply in found if reply is not None]

    def _send(self, message: Message) -> Message:
        data = message_to_proto(message).SerializeToString()
        self.wire.append(data)
        return message_from_proto(ProtoMessage.FromString(data))

    def _at_node(self, message: Message, node: int) -> Message | None:
        config, run_config = self.nodes[node], self.run_config
        context = Context(1, node, dict(config), RecordDict(), dict(run_config))
        try:
            return self.answer(self, message, context)
        except Exception as error:  # as a SuperNode does
            return Message(Error(code=2, reason=f"{type(error).__name__}"), reply_to=message)
