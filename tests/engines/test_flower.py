"""The same round over Flower's messages, on a grid in this process."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

flwr = pytest.importorskip("flwr")

from fake_grid import FakeGrid  # noqa: E402
from flwr.app import ConfigRecord, Message, RecordDict  # noqa: E402

from fedsdr.engines import experiment  # noqa: E402
from fedsdr.engines.experiment import clients_of, run_experiment  # noqa: E402
from fedsdr.engines.flower import client_app, server_app  # noqa: E402
from fedsdr.engines.flower.records import answer_from_records, answer_to_records  # noqa: E402
from fedsdr.engines.flower.run_config import to_run_config  # noqa: E402
from fedsdr.engines.progress import SILENT  # noqa: E402
from fedsdr.errors import UserError  # noqa: E402
from fedsdr.models.adapters import load_adapter  # noqa: E402
from fedsdr.training.methods import METHODS  # noqa: E402
from fedsdr.types import ClientFault  # noqa: E402

NAMES = ("bank", "clinic", "school")


@pytest.fixture(autouse=True)
def _quick_and_fresh(monkeypatch):
    """No wait between polls, and no site that another test has opened."""
    monkeypatch.setattr("fedsdr.engines.flower.asking.POLL_SECONDS", 0.001)
    monkeypatch.setattr("fedsdr.engines.flower.server_app.POLL_SECONDS", 0.001)
    for opened in (client_app._held, client_app._all_clients, client_app._site):
        opened.cache_clear()


def nodes_of(data, sites):
    """Return three nodes as their sites configure them."""
    return {
        100 + i: {
            "client": name,
            "data": str(data / f"{name}.jsonl"),
            "state-dir": str(sites / name),
        }
        for i, name in enumerate(NAMES)
    }


@pytest.fixture
def deploy(tmp_path, data_folder):
    """Return a function that runs a configuration over three sites: the state, and the grid."""

    def run(config, *, data=data_folder, log=lambda line: None, sites=3, **grid):
        engine = replace(config.engine, sites=sites, join_seconds=1, round_seconds=1)
        config = replace(config, engine=engine)
        out = tmp_path / "server"
        run_config = to_run_config(config) | {"out": str(out), "experiment": "trial"}
        over = FakeGrid(client_app.app, nodes_of(data, tmp_path / "sites"), run_config, **grid)
        rewriting = METHODS[config.method.name].rewrites
        state = server_app.serve(over, config, out, replace(SILENT, log=log), rewriting=rewriting)
        return state, over

    return run


def checkpoint_of(out):
    return {p.name: p.read_bytes() for p in (out / "checkpoint").rglob("*") if p.is_file()}


def records_of(out):
    return [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("algorithm.name=scaffold", "federation.update_dtype=int8"),
        ("method.name=plain", "algorithm.name=fedadam", "federation.clients_per_round=2"),
    ],
)
def test_three_sites_come_to_the_bytes_of_one_process(overrides, write_config, tmp_path, deploy):
    config = write_config("federation.rounds=2", *overrides)
    run_experiment(config, tmp_path / "one", SILENT)
    state, _ = deploy(config)
    assert state.round == 2
    assert checkpoint_of(tmp_path / "server") == checkpoint_of(tmp_path / "one")
    for name in NAMES:
        own = tmp_path / "one/clients" / name
        for path in own.rglob("*.safetensors"):
            there = tmp_path / "sites" / name / "trial" / name / "clients" / name
            assert (there / path.relative_to(own)).read_bytes() == path.read_bytes()
    ours, theirs = records_of(tmp_path / "one"), records_of(tmp_path / "server")
    timed = ("seconds",)
    for one, other in zip(ours, theirs, strict=True):
        assert one["refused"] == other["refused"] == []
        assert one["step_norm"] == other["step_norm"]
        for a, b in zip(one["clients"], other["clients"], strict=True):
            assert {k: v for k, v in a.items() if not k.endswith(timed)} == {
                k: v for k, v in b.items() if not k.endswith(timed)
            }


def secrets_of(out, sites, config):
    """Return what must never cross: name -> bytes of every row of S in any width, and all texts."""
    secret = {}
    for folder in sites.glob("*/trial/*/clients/*/round-*"):
        for name, value in load_adapter(folder, "S").items():
            for width in (torch.float32, torch.bfloat16, torch.float16):
                rows = value.to(width).contiguous().view(torch.uint8)
                # A B of zeros is not a secret, and half a row is as telling as all of it.
                secret |= {
                    f"{folder.name} {name} row {i} as {width}": bytes(row[: len(row) // 2].tolist())
                    for i, row in enumerate(rows)
                    if row.any() and len(row) >= 16
                }
    texts = {
        text
        for client in clients_of(config)
        for e in (*client.raw, *client.test)
        for text in (e.instruction, e.response)
    }
    for path in sites.glob("*/trial/*/distilled/*.jsonl"):
        texts |= {json.loads(line)["rewrite"] for line in path.read_text().splitlines()}
    return secret | {f"text {text!r}": text.encode() for text in texts if len(text) >= 8}


LEAKS = {
    "nothing": lambda update, s: update,
    "S as a tensor": lambda update, s: replace(update, delta={**update.delta, **s}),
    "S in place of R": lambda update, s: replace(
        update, delta={n: s[n.replace("R/", "S/", 1)].clone() for n in update.delta}
    ),
    "a sentence": lambda update, s: ClientFault(
        update.client_id, update.round, "the loan has a rate of 3 percent a year"
    ),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_neither_s_nor_text_is_in_any_byte_that_crosses(
    leak, write_config, tmp_path, deploy, monkeypatch
):
    real, sites = client_app.train_at, tmp_path / "sites"

    def train(site, client, task, *rest):
        update = real(site, client, task, *rest)
        s = load_adapter(site.store(client.client_id).folder, "S")
        return LEAKS[leak](update, s) if client.client_id == "bank" else update

    monkeypatch.setattr(client_app, "train_at", train)
    config = write_config("federation.rounds=2", "teacher.max_new_tokens=24")
    _, grid = deploy(config)
    secret = secrets_of(tmp_path / "server", sites, config)
    assert sum(name.startswith("round") for name in secret) > 50
    assert sum(name.startswith("text") for name in secret) > 3 * 10 * 2  # rewrites, too
    assert len(grid.crossed) == 2 * 3 * (1 + 1 + 2)  # there and back: join, rewrite, two rounds
    found = [name for name, value in secret.items() if any(value in b for b in grid.crossed)]
    assert bool(found) == (leak != "nothing"), found[:5]
    # What the server keeps is as clean, unless a client sends S in R's own place.
    kept = (tmp_path / "server/checkpoint/round-0002/shared.safetensors").read_bytes()
    assert not any(value in kept for value in secret.values())
    assert "the loan" not in (tmp_path / "server/rounds.jsonl").read_text() or leak == "a sentence"


def first_of(update, value):
    name = next(iter(update.delta))
    return replace(update, delta={**update.delta, name: value(update.delta[name])})


def spoilt(change):
    """A node whose update of round 1 is changed on its way."""

    def answer(grid, message, context):
        reply = grid.app(message, context)
        if is_train(message, context, round=1):
            changed = change(answer_from_records(reply.content))
            reply = Message(answer_to_records(changed), reply_to=message)
        return reply

    return answer


def is_train(message, context, round):
    """Whether this asks the bank to train in this round."""
    mine = context.node_config["client"] == "bank" and message.metadata.message_type == "train"
    return mine and message.content["task"]["round"] == round


def instead(make):
    """A node that trains in round 1, and whose answer is something else all the same."""

    def answer(grid, message, context):
        reply = grid.app(message, context)
        return make(message, reply) if is_train(message, context, round=1) else reply

    return answer


def with_a_record_more(message, reply):
    reply.content["notes"] = ConfigRecord({"text": "the loan has a rate of 3 percent a year"})
    return reply


def fail(message, reply):
    raise MemoryError


FAULTS = {
    "a NaN": (spoilt(lambda u: first_of(u, lambda x: x * torch.nan)), "not finite"),
    "a wrong shape": (spoilt(lambda u: first_of(u, lambda x: x[:1])), "has shape"),
    "an extra tensor": (
        spoilt(lambda u: replace(u, delta={**u.delta, "S/x": torch.ones(2)})),
        "a tensor too many: 'S/x'",
    ),
    "a norm a million times too large": (
        spoilt(lambda u: replace(u, delta={n: x * 1e6 for n, x in u.delta.items()})),
        "above federation.max_update_norm 10",
    ),
    "another's name": (
        spoilt(lambda u: replace(u, client_id="clinic")),
        "answers in the name of 'clinic'",
    ),
    "another round": (spoilt(lambda u: replace(u, round=7)), "of round 7"),
    "a record more": (instead(with_a_record_more), "malformed: a record is missing or one too"),
    "no tensors": (
        instead(lambda m, reply: Message(RecordDict(), reply_to=m)),
        "its answer is malformed",
    ),
    "never": (instead(lambda m, reply: None), "no answer in 1 s (engine.round_seconds)"),
    "an error": (instead(fail), "Flower error 2: MemoryError"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_answer_is_refused_and_what_the_client_learnt_for_it_is_taken_back(
    fault, write_config, tmp_path, deploy, monkeypatch
):
    answer, reason = FAULTS[fault]
    config = write_config("federation.rounds=2", "federation.max_update_norm=10")
    deploy(config, answer=answer)
    refused = [record["refused"] for record in records_of(tmp_path / "server")]
    assert [r["id"] for r in refused[0]] == ["bank"]
    assert reason in refused[0][0]["reason"]
    assert "percent" not in refused[0][0]["reason"]
    assert refused[1] == []
    # The same as if the bank had been away in round 1: no S lost, none counted twice.
    away_in_round_1(monkeypatch)
    run_experiment(config, tmp_path / "one", SILENT)
    assert checkpoint_of(tmp_path / "server") == checkpoint_of(tmp_path / "one")
    there = tmp_path / "sites/bank/trial/bank/clients/bank/adapter_model.safetensors"
    assert there.read_bytes() == (tmp_path / "one/clients/bank" / there.name).read_bytes()


def away_in_round_1(monkeypatch):
    real = experiment.train_at

    def train(site, client, task, *rest):
        if (client.client_id, task.round) == ("bank", 1):
            raise UserError("away")
        return real(site, client, task, *rest)

    monkeypatch.setattr(experiment, "train_at", train)


def test_a_node_that_was_killed_goes_on_as_another_node(
    write_config, tmp_path, deploy, monkeypatch
):
    said = []

    def killed(grid, message, context):
        reply = grid.app(message, context)  # its S is written already
        if is_train(message, context, round=1):
            grid.nodes[200] = grid.nodes.pop(100)
            return None
        return reply

    config = write_config("federation.rounds=2")
    deploy(config, answer=killed, log=said.append)
    assert sum("client 'bank' joined with 9 rows" in line for line in said) == 2
    away_in_round_1(monkeypatch)
    run_experiment(config, tmp_path / "one", SILENT)
    assert checkpoint_of(tmp_path / "server") == checkpoint_of(tmp_path / "one")


def test_a_site_with_a_broken_file_is_left_out_and_joins_when_it_is_mended(
    write_config, tmp_path, deploy, data_folder
):
    data, said = tmp_path / "data", []
    shutil.copytree(data_folder, data)
    whole = (data / "bank.jsonl").read_text()
    (data / "bank.jsonl").write_text(whole + '{"instruction": "secret loan", "output": tr')

    def mended_in_round_1(grid, message, context):
        if message.metadata.message_type == "train":
            (data / "bank.jsonl").write_text(whole)
        return grid.app(message, context)

    deploy(
        write_config("federation.rounds=2"),
        data=data, sites=2, log=said.append, answer=mended_in_round_1,
    )  # fmt: skip
    assert "node 100 cannot join: UserError (its log has more)" in said
    ids = [[c["id"] for c in record["clients"]] for record in records_of(tmp_path / "server")]
    assert ids == [["clinic", "school"], ["bank", "clinic", "school"]]


def test_a_server_that_was_killed_goes_on_from_its_checkpoint_to_the_same_bytes(
    write_config, tmp_path, deploy
):
    def server_dies(grid, message, context):
        if is_train(message, context, round=2):
            raise KeyboardInterrupt
        return grid.app(message, context)

    config = write_config("federation.rounds=3", "algorithm.name=fedadam")
    with pytest.raises(KeyboardInterrupt):
        deploy(config, answer=server_dies)
    assert [r["round"] for r in records_of(tmp_path / "server")] == [1]
    deploy(config)
    run_experiment(config, tmp_path / "one", SILENT)
    assert checkpoint_of(tmp_path / "server") == checkpoint_of(tmp_path / "one")
    assert [r["round"] for r in records_of(tmp_path / "server")] == [1, 2, 3]


def test_waits_have_an_end_and_too_few_updates_end_the_run(write_config, tmp_path, deploy):
    with pytest.raises(UserError, match=r"3 of 4 sites joined in 1 s \(bank, clinic, school\)"):
        deploy(write_config(), sites=4)
    with pytest.raises(UserError, match=r"0 of 3 updates could be counted.*no answer in 1 s"):
        deploy(
            write_config("method.name=plain"),
            answer=lambda grid, message, context: (
                None if message.metadata.message_type == "train" else grid.app(message, context)
            ),
        )
