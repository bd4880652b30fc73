"""Messages to nodes: hostile replies, lost replies, what is sent once. No model is needed."""

import time
from dataclasses import replace

import pytest
import torch

pytest.importorskip("flwr")

from fake_grid import FakeGrid
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedsdr.flower import nodes, wire
from fedsdr.flower.nodes import Nodes, over_grid
from fedsdr.flower.wire import answer_to_records, task_from_records
from fedsdr.types import ClientFault, ClientTask, ClientUpdate, LocalSettings

SHARED = {"R/a.lora_A": torch.randn(2, 64), "R/a.lora_B": torch.randn(64, 2)}


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch):
    monkeypatch.setattr(nodes, "POLL_SECONDS", 0.001)


def tasks_of(*clients, **settings):
    given = LocalSettings(method="dual-raw", **settings)
    return [ClientTask(3, c, 0, SHARED, {}, given, run_id="x") for c in clients]


def update_of(task, **changes):
    update = ClientUpdate(task.client_id, task.round, 9, task.shared, {}, {"R.raw.loss": 1.0})
    return answer_to_records(replace(update, **changes))


def run(tasks, answer, seconds=0.05):
    """Run tasks on a grid whose node 1 is the first client's, and so on; `answer` maps a task to
    records, None for no reply."""

    def at_node(grid, message, context):
        content = answer(task_from_records(message.content))
        return None if content is None else Message(content, reply_to=message)

    grid = FakeGrid(None, {i: {} for i, _ in enumerate(tasks, 1)}, {}, at_node)
    connected = {task.client_id: i for i, task in enumerate(tasks, 1)}
    return list(over_grid(grid, connected, seconds)(tasks)), grid


def without(records, name):
    return RecordDict({key: value for key, value in records.items() if key != name})


def with_record(records, name, record):
    return RecordDict({**records, name: record})


BYTES = update_of(tasks_of("bank")[0])["delta"]["safetensors"]
TRUNCATED = ArrayRecord({"safetensors": replace(BYTES, data=BYTES.data[:-9])})
HOSTILE = {
    "another client's name": (
        lambda task: update_of(task, client_id="clinic"),
        "malformed answer: it is in the name of 'clinic'",
    ),
    "a bf16 update where fp32 was asked for": (
        lambda task: update_of(task, delta={n: x.bfloat16() for n, x in task.shared.items()}),
        "bfloat16",
    ),
    "a fault in another name": (
        lambda task: answer_to_records(ClientFault("clinic", 3, "no")),
        "malformed answer: it is in the name of 'clinic'",
    ),
    "an unexpected record": (
        lambda task: with_record(update_of(task), "notes", ConfigRecord({"text": "a"})),
        "malformed answer: unexpected record: notes",
    ),
    "no metrics": (
        lambda task: without(update_of(task), "metrics"),
        "malformed answer: missing record: metrics",
    ),
    "no records": (
        lambda task: RecordDict(),
        "malformed answer: missing record: control-delta, delta, metrics, update",
    ),
    "scalars in place of tensors": (
        lambda task: with_record(update_of(task), "delta", ConfigRecord({"x": 1})),
        "malformed answer: 'delta' must be an ArrayRecord with one safetensors array",
    ),
    "half a file": (
        lambda task: with_record(update_of(task), "delta", TRUNCATED),
        "'delta' cannot",
    ),
    "a name of another type": (
        lambda task: with_record(
            update_of(task),
            "update",
            ConfigRecord({"client_id": 7, "round": 3, "num_examples": 9}),
        ),
        "malformed answer: 'update.client_id' must be of type str",
    ),
    "no reply": (lambda task: None, "no answer in 0.05 s (engine.round_seconds)"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_reply_is_a_fault_of_its_client_alone(case):
    answer, reason = HOSTILE[case]
    tasks = tasks_of("bank", "clinic")
    answers, _ = run(tasks, lambda t: answer(t) if t.client_id == "bank" else update_of(t))
    assert [a.client_id for a in answers] == ["bank", "clinic"]
    assert isinstance(answers[0], ClientFault)
    assert answers[0].round == 3
    assert reason in answers[0].reason
    assert isinstance(answers[1], ClientUpdate)


def test_answers_come_in_the_order_of_the_tasks_one_for_each():
    tasks = tasks_of("a", "b", "c", "d")
    answers, _ = run(tasks, lambda t: None if t.client_id == "b" else update_of(t))
    assert [a.client_id for a in answers] == ["a", "b", "c", "d"]
    grid = FakeGrid(None, {}, {})
    (answer,) = over_grid(grid, {}, 1.0)(tasks_of("a"))
    assert answer == ClientFault("a", 3, "is not connected")


def test_tensors_that_tasks_share_are_serialised_once():
    tasks = tasks_of(*(f"client-{i}" for i in range(20)))
    records = wire.tasks_to_records(tasks)
    assert len({id(record["shared"]["safetensors"].data) for record in records}) == 1
    for task, record in zip(tasks, records, strict=True):
        back = task_from_records(record)
        assert back.client_id == task.client_id
        assert all(torch.equal(back.shared[n], x) for n, x in SHARED.items())


def report(**values):
    return RecordDict({"report": ConfigRecord(values)})


@pytest.fixture
def joined():
    """Return a function that has one node join with this content; it returns the nodes, what
    `poll` returned and the log."""

    def join(content):
        grid = FakeGrid(None, {7: {}}, {}, lambda grid, m, context: Message(content, reply_to=m))
        log = []
        found = Nodes(grid, log.append, "x")
        return found, found.poll(), log

    return join


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (report(client="../../etc", rows=9), "'../../etc' cannot be the name of a client"),
        (report(client="bank\nround 9: 3 updates", rows=9), "cannot be the name of a client"),
        (report(client="\x1b[2Jbank", rows=9), r"'\x1b[2Jbank' cannot be the name of a client"),
        (report(client="b" * 100_000, rows=9), "cannot be the name of a client"),
        (report(client="", rows=9), "'' cannot be the name of a client"),
        (report(client=7, rows=9), "malformed report: 'report.client' must be of type str"),
        (report(client="bank", rows=-9), "client 'bank' reports -9 training rows"),
        (report(client="bank", rows=2**62), "client 'bank' reports 4611686018427387904 training"),
        (report(client="bank", rows=1e9), "malformed report: 'report.rows' must be of type int"),
        (report(client="bank", rows=True), "malformed report: 'report.rows' must be of type int"),
        (report(client="bank"), "malformed report: 'report' must have exactly client, rows"),
        (report(client="bank", rows=9, x=1), "malformed report: 'report' must have exactly client"),
        (answer_to_records(ClientFault("", 0, "\x1b[2J\n" * 50_000)), "\ufffd[2J \ufffd[2J"),
        (RecordDict(), "malformed report: missing record: report"),
        (RecordDict({"report": MetricRecord({"rows": 9})}), "'report' must have exactly client"),
    ],
)
def test_a_node_with_a_hostile_report_cannot_join(content, reason, joined):
    found, connected, (line,) = joined(content)
    assert connected == found.announced == {}
    assert not found.awaiting_names
    (refusal,) = found.take_refusals()
    assert refusal["id"] == "node 7"
    assert reason in refusal["reason"]
    assert reason in line
    assert line.isprintable()
    assert len(line) < 400
    assert found.take_refusals() == []


def test_a_client_announces_its_rows_and_counts_as_one_row_if_it_may_not(joined):
    found, connected, log = joined(report(client="bank", rows=9))
    assert (connected, found.announced) == ({"bank": 7}, {"bank": 9})
    assert log == ["client 'bank' joined with 9 rows"]
    found, connected, log = joined(report(client="bank", rows=0))
    assert (connected, found.announced) == ({"bank": 7}, {"bank": 1})
    assert log == ["client 'bank' joined"]


def test_a_client_that_comes_back_with_another_number_of_rows_cannot_join():
    rows = iter([9, 900, 9])

    def answer(grid, m, context):
        return Message(report(client="bank", rows=next(rows)), reply_to=m)

    grid, log = FakeGrid(None, {7: {}}, {}, answer), []
    found = Nodes(grid, log.append, "x")
    assert found.poll() == {"bank": 7}
    grid.nodes = {8: {}}
    assert found.poll() == {}
    assert log[-1] == "node 8 cannot join: client 'bank' reports 900 training rows, 9 before"
    grid.nodes = {9: {}}
    assert found.poll() == {"bank": 9}
    assert found.announced == {"bank": 9}


def test_a_node_whose_reply_was_lost_is_asked_again_and_less_and_less_often(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(nodes.time, "monotonic", lambda: now[0])
    asked = []

    def replies_at_the_fourth(grid, message, context):
        asked.append(now[0])
        return Message(report(client="bank", rows=9), reply_to=message) if asked[3:] else None

    found = Nodes(FakeGrid(None, {7: {}}, {}, replies_at_the_fourth), lambda line: None, "x")
    waited = []
    while not found.poll():
        waited.append(found.awaiting_names)
        now[0] += 10
    assert asked == [0, 60, 120, 240]
    assert waited == [True] * 6 + [False] * 18  # the server waits for it for a minute


def test_a_late_reply_to_the_first_question_still_counts(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(nodes.time, "monotonic", lambda: now[0])
    late = {}

    class Late(FakeGrid):
        def pull_messages(self, message_ids):
            held = super().pull_messages(message_ids)
            late.update({m.metadata.reply_to_message_id: m for m in held})
            first = next(iter(message_ids))
            return [late.pop(first)] if now[0] > 60 and first in late else []

    grid = Late(
        None, {7: {}}, {}, lambda g, m, context: Message(report(client="bank", rows=9), reply_to=m)
    )
    found = Nodes(grid, lambda line: None, "x")
    assert found.poll() == {}
    now[0] = 61
    assert found.poll() == {"bank": 7}


def test_a_wait_ends_at_its_deadline():
    began = time.monotonic()
    run(tasks_of("bank"), lambda task: None, seconds=0.1)
    assert 0.1 <= time.monotonic() - began < 5
