"""Faulty and hostile sites, on a grid in this process: the run is correct, or stops and resumes."""

import shutil
from dataclasses import replace
from time import sleep

import pytest
import torch

pytest.importorskip("flwr")

from fake_grid import checkpoint_of, records_of
from flwr.app import ConfigRecord, Message, RecordDict

from fedsdr.errors import UserError
from fedsdr.files import alone
from fedsdr.flower import nodes, server_app
from fedsdr.flower.wire import answer_from_records, answer_to_records
from fedsdr.progress import SILENT
from fedsdr.runs import run as run_module
from fedsdr.runs.run import run_experiment
from fedsdr.types import ClientFault

QUICK = ("method.name=dual-raw", "federation.rounds=2")  # S and R without rewriting


def first_of(update, value):
    name = next(iter(update.delta))
    return replace(update, delta={**update.delta, name: value(update.delta[name])})


def changed(change):
    """The bank's update of round 1 is changed on its way."""

    def answer(grid, message, context):
        reply = grid.app(message, context)
        if is_train(message, context, round=1):
            answer = change(answer_from_records(reply.content))
            reply = Message(answer_to_records(answer), reply_to=message)
        return reply

    return answer


def is_train(message, context, round):
    """Whether this is the bank's task of this round."""
    mine = context.node_config["client"] == "bank" and message.metadata.message_type == "train"
    return mine and message.content["task"]["round"] == round


def replaced(make):
    """The bank trains in round 1 but replies with something else."""

    def answer(grid, message, context):
        reply = grid.app(message, context)
        return make(message, reply) if is_train(message, context, round=1) else reply

    return answer


def with_an_extra_record(message, reply):
    reply.content["notes"] = ConfigRecord({"text": "the loan has a rate of 3 percent a year"})
    return reply


def fail(message, reply):
    raise MemoryError


FAULTS = {
    "a NaN": (changed(lambda u: first_of(u, lambda x: x * torch.nan)), "not finite"),
    "a norm a million times too large": (
        changed(lambda u: replace(u, delta={n: x * 1e6 for n, x in u.delta.items()})),
        "above federation.max_update_norm 10",
    ),
    "a norm far above that of the others": (
        changed(lambda u: replace(u, delta={n: x * 20 for n, x in u.delta.items()})),
        "above federation.max_norm_ratio 10 x",
    ),
    "an extra tensor": (
        changed(lambda u: replace(u, delta={**u.delta, "S/x": torch.ones(2)})),
        "an unexpected tensor 'S/x'",
    ),
    "more rows than it announced": (
        changed(lambda u: replace(u, num_examples=10)),
        "counts 10 examples, above the announced 9",
    ),
    "300 made-up metrics": (
        changed(lambda u: replace(u, metrics={f"\x1b[2J{i}": 1.0 for i in range(300)})),
        "has an unknown metric '\ufffd[2J0'",
    ),
    "a long reason with control characters": (
        changed(lambda u: ClientFault(u.client_id, 7, "\x1b[2J\nno\u202e" * 10_000)),
        "\ufffd[2J no\ufffd",
    ),
    "an extra record": (replaced(with_an_extra_record), "malformed answer: unexpected record"),
    "no reply": (replaced(lambda m, reply: None), "no answer in 1 s (engine.round_seconds)"),
    "an error": (replaced(fail), "Flower error 2: MemoryError"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_answer_is_refused_and_the_clients_state_is_that_before_the_round(
    fault, write_config, tmp_path, deploy, without_round_1
):
    answer, reason = FAULTS[fault]
    config = write_config(*QUICK, "federation.max_update_norm=10")
    deploy(config, answer=answer)
    refused = [record["refused"] for record in records_of(tmp_path / "server")]
    assert [r["id"] for r in refused[0]] == ["bank"]
    assert reason in refused[0][0]["reason"]
    assert refused[0][0]["reason"].isprintable()
    assert len(refused[0][0]["reason"]) < 400
    assert "percent" not in refused[0][0]["reason"]
    assert refused[1] == []
    # As if the bank had been away in round 1: no S is lost, and no update counts twice.
    assert checkpoint_of(tmp_path / "server") == checkpoint_of(without_round_1(config))
    own = "clients/bank/adapter_model.safetensors"
    there = tmp_path / "sites/bank/trial/bank" / own
    assert there.read_bytes() == (without_round_1(config) / own).read_bytes()


@pytest.fixture(scope="module")
def folder_without_round_1(tmp_path_factory):
    return tmp_path_factory.mktemp("without") / "run"


@pytest.fixture
def without_round_1(folder_without_round_1, monkeypatch):
    """Return a function that returns the folder of a run in one process in which the bank was away
    in round 1. It runs once for all tests."""
    real, out = run_module.train_at, folder_without_round_1

    def train(site, client, task, *rest):
        if (client.client_id, task.round) == ("bank", 1):
            raise UserError("away")
        return real(site, client, task, *rest)

    def run(config):
        if not out.exists():
            monkeypatch.setattr(run_module, "train_at", train)
            run_experiment(config, out, SILENT)
        return out

    return run


def test_a_site_that_was_killed_continues_as_another_node(
    write_config, tmp_path, deploy, without_round_1
):
    log = []

    def killed(grid, message, context):
        reply = grid.app(message, context)  # its S is written already
        if is_train(message, context, round=1):
            grid.nodes[200] = grid.nodes.pop(100)
            return None
        return reply

    config = write_config(*QUICK)
    deploy(config, answer=killed, log=log.append)
    assert log.count("client 'bank' joined with 9 rows") == 2
    assert checkpoint_of(tmp_path / "server") == checkpoint_of(without_round_1(config))


def test_a_site_with_a_broken_file_is_left_out_and_joins_when_it_is_fixed(
    write_config, tmp_path, deploy, data_folder
):
    data, log = tmp_path / "data", []
    shutil.copytree(data_folder, data)
    whole = (data / "bank.jsonl").read_text()
    (data / "bank.jsonl").write_text(whole + '{"instruction": "secret loan", "output": tr')

    def fixed_in_round_1(grid, message, context):
        if message.metadata.message_type == "train":
            (data / "bank.jsonl").write_text(whole)
        return grid.app(message, context)

    deploy(
        write_config(*QUICK),
        data=data, sites=2, log=log.append, answer=fixed_in_round_1,
    )  # fmt: skip
    assert "node 100 cannot join: UserError (see the site's log)" in log
    first, second = records_of(tmp_path / "server")
    assert [c["id"] for c in first["clients"]] == ["clinic", "school"]
    assert first["refused"][0]["reason"] == "cannot join: UserError (see the site's log)"
    assert [c["id"] for c in second["clients"]] == ["bank", "clinic", "school"]


def test_a_server_that_was_killed_resumes_from_its_checkpoint_to_the_same_bytes(
    write_config, tmp_path, deploy
):
    def server_dies(grid, message, context):
        if is_train(message, context, round=2):
            raise KeyboardInterrupt
        return grid.app(message, context)

    config = write_config(*QUICK, "federation.rounds=3", "algorithm.name=fedadam")
    with pytest.raises(KeyboardInterrupt):
        deploy(config, answer=server_dies)
    assert [r["round"] for r in records_of(tmp_path / "server")] == [1]
    deploy(config)
    run_experiment(config, tmp_path / "one", SILENT)
    assert checkpoint_of(tmp_path / "server") == checkpoint_of(tmp_path / "one")
    assert [r["round"] for r in records_of(tmp_path / "server")] == [1, 2, 3]


def test_waits_have_a_deadline_and_too_few_updates_end_the_run(write_config, tmp_path, deploy):
    with pytest.raises(UserError, match=r"3 of 4 sites joined in 1 s \(bank, clinic, school\)"):
        deploy(write_config(*QUICK), sites=4)
    with pytest.raises(UserError, match=r"0 of 3 updates were accepted.*no answer in 1 s"):
        deploy(
            write_config(*QUICK),
            answer=lambda grid, message, context: (
                None if message.metadata.message_type == "train" else grid.app(message, context)
            ),
        )


def test_errors_that_concern_a_sites_own_files_stay_in_its_log(write_config, tmp_path, deploy):
    def loses_its_state(grid, message, context):
        if is_train(message, context, round=2):
            shutil.rmtree(tmp_path / "sites/bank/trial/bank/clients/bank/round-0001")
        return grid.app(message, context)

    deploy(write_config(*QUICK), answer=loses_its_state)
    refused = records_of(tmp_path / "server")[1]["refused"]
    assert refused == [{"id": "bank", "reason": "UserError (see the site's log)"}]


def test_a_run_never_continues_from_the_state_of_another_run_of_its_name(
    write_config, tmp_path, deploy
):
    config = write_config(*QUICK)
    deploy(config)
    before = checkpoint_of(tmp_path / "sites/bank/trial/bank")
    shutil.rmtree(tmp_path / "server")
    log = []
    with pytest.raises(UserError, match="0 of 3 sites joined"):
        deploy(config, log=log.append)
    assert any("the state of another run in STATE_DIR/trial/bank" in line for line in log)
    shutil.rmtree(tmp_path / "server")
    for site in ("clinic", "school"):
        (tmp_path / f"sites/{site}/trial").rename(tmp_path / f"sites/{site}/moved away")
    deploy(config, sites=2)
    assert [c["id"] for c in records_of(tmp_path / "server")[0]["clients"]] == ["clinic", "school"]
    assert checkpoint_of(tmp_path / "sites/bank/trial/bank") == before


def test_nodes_that_disconnect_between_rounds_are_waited_for(write_config, tmp_path, deploy):
    away = {}

    def all_go_after_round_1(grid, message, context):
        reply = grid.app(message, context)
        if message.metadata.message_type == "train" and message.content["task"]["round"] == 1:
            number = message.metadata.dst_node_id
            away[number] = grid.nodes.pop(number)
        return reply

    class Returning(dict):
        polls = 0

        def __iter__(self):  # each time the server lists the connected nodes
            self.polls += bool(away)
            if self.polls > 5:
                self.update(away)
            return super().__iter__()

    deploy(write_config(*QUICK, "federation.min_updates=3"), answer=all_go_after_round_1,
           nodes_as=Returning)  # fmt: skip
    assert [len(r["clients"]) for r in records_of(tmp_path / "server")] == [3, 3]


def test_the_server_needs_neither_weights_nor_the_device_of_the_study(
    write_config, tmp_path, deploy, model_folder
):
    light = tmp_path / "config alone"
    light.mkdir()
    shutil.copy(model_folder / "config.json", light)
    config = write_config(*QUICK)
    model = replace(config.model, name=str(light), device="cuda:7", quantize="4bit", dtype="bf16")
    own = {"model.name": str(model_folder), "model.quantize": "none", "model.dtype": "fp32"}
    deploy(replace(config, model=model), own=own)
    run_experiment(config, tmp_path / "one", SILENT)
    assert checkpoint_of(tmp_path / "server") == checkpoint_of(tmp_path / "one")


def test_only_one_run_at_a_time_writes_a_folder(write_config, tmp_path):
    config = write_config(*QUICK)
    with (
        alone(tmp_path / "run"),
        pytest.raises(UserError, match="run: another process"),
    ):
        run_experiment(config, tmp_path / "run", SILENT)
    run_experiment(config, tmp_path / "run", SILENT)


def test_two_tasks_of_one_client_never_run_at_the_same_time(write_config, tmp_path, deploy):
    with alone(tmp_path / "sites/bank/trial/bank/clients/bank"):
        deploy(write_config(*QUICK, "federation.rounds=1"))
    (record,) = records_of(tmp_path / "server")
    assert record["refused"] == [{"id": "bank", "reason": "BusyError (see the site's log)"}]
    assert [c["id"] for c in record["clients"]] == ["clinic", "school"]


def test_a_node_that_never_says_its_name_is_waited_for_once(
    write_config, tmp_path, deploy, monkeypatch
):
    monkeypatch.setattr(nodes, "JOIN_SECONDS", 0.5)

    def mute(grid, message, context):
        mute = context.node_config["client"] == "bank"
        return None if mute else grid.app(message, context)

    slept = []
    monkeypatch.setattr(server_app.time, "sleep", lambda s: (slept.append(s), sleep(0.01)))
    deploy(write_config(*QUICK), answer=mute, sites=2)
    ids = [[c["id"] for c in record["clients"]] for record in records_of(tmp_path / "server")]
    assert ids == [["clinic", "school"]] * 2
    assert 10 < len(slept) < 60  # half a second, not one in each round


def test_a_malformed_report_of_rewrites_does_not_end_the_run(write_config, tmp_path, deploy):
    def hostile(grid, message, context):
        if message.metadata.message_type == "train.rewrite":
            return Message(RecordDict({"report": ConfigRecord({"answers": 3})}), reply_to=message)
        return grid.app(message, context)

    log = []
    deploy(write_config("federation.rounds=1"), answer=hostile, log=log.append)
    assert "  bank: malformed report: 'report' must have exactly answers, rewritten" in log


def test_a_site_whose_folder_has_rounds_but_no_run_id_does_not_join(write_config, tmp_path, deploy):
    config = write_config(*QUICK)
    deploy(config)
    shutil.rmtree(tmp_path / "server")
    for path in (tmp_path / "sites").rglob("run_id"):
        path.unlink()
    with pytest.raises(UserError, match="0 of 3 sites joined"):
        deploy(config)
