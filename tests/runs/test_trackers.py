"""What trackers hold after a run, read back with their own libraries, offline."""

import json
import time

import pytest

from fedsdr.errors import UserError
from fedsdr.progress import SILENT
from fedsdr.runs import trackers
from fedsdr.runs.run import run_experiment
from fedsdr.runs.trackers import metrics_of, tracked

RECORD = {
    "round": 3,
    "clients": [
        {"id": "bank", "num_examples": 4, "norm": 0.5, "R.raw.loss": 1.0, "R.raw.tokens": 7},
        {"id": "clinic", "num_examples": 4, "norm": 1.5, "R.raw.loss": 2.0, "R.raw.tokens": 9},
    ],
    "refused": [{"id": "school", "reason": "a text"}],
    "left_out": [],
    "bytes_up": 8, "bytes_down": 9, "step_norm": 0.25, "seconds": 2.0,
    "update_cosine": None, "epsilon": None, "aggregation": {},
    "evaluation": {"of": "test", "losses": {"bank": {"global": 4.0, "client": 3.0}}},
}  # fmt: skip


def test_a_round_is_numbers_by_phase_and_client_alone():
    assert metrics_of(RECORD) == {
        "loss R.raw/bank": 1.0, "loss R.raw/clinic": 2.0, "loss R.raw/mean": 1.5,
        "loss test rows global model/bank": 4.0, "loss test rows global model/mean": 4.0,
        "loss test rows own model/bank": 3.0, "loss test rows own model/mean": 3.0,
        "tokens R.raw/bank": 7.0, "tokens R.raw/clinic": 9.0,
        "update norm/bank": 0.5, "update norm/clinic": 1.5,
        "round/clients": 2.0, "round/refused": 1.0, "round/left_out": 0.0, "round/seconds": 2.0,
        "round/bytes_up": 8.0, "round/bytes_down": 9.0, "round/step_norm": 0.25,
    }  # fmt: skip


def test_off_by_default_and_an_unknown_or_missing_tracker_is_refused_first(
    write_config, tmp_path, monkeypatch
):
    assert write_config().log.to == []
    with pytest.raises(UserError, match=r"log.to: unknown name 'tensorbord'.*did you mean"):
        run_experiment(write_config('log.to=["tensorbord"]'), tmp_path / "run", SILENT)
    missing = replace_module("wandb", "no_such_module")
    monkeypatch.setattr(trackers, "TRACKERS", missing)
    with pytest.raises(UserError, match=r"log.to: 'log-wandb' needs the package no_such_module"):
        run_experiment(write_config('log.to=["wandb"]'), tmp_path / "run", SILENT)
    assert not (tmp_path / "run").exists()


def replace_module(name, module):
    return {**trackers.TRACKERS, name: trackers.TRACKERS[name]._replace(module=module)}


def test_tensorboard_holds_the_losses_of_a_run_and_of_its_resumption(write_config, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, to = tmp_path / "run", ("method.name=plain", 'log.to=["tensorboard"]')
    run_experiment(write_config("federation.rounds=1", *to), out, SILENT)
    run_experiment(write_config("federation.rounds=2", *to), out, SILENT, resume=True)
    records = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    found = {}
    for path in (out / "tensorboard").iterdir():
        events = EventAccumulator(str(path)).Reload()
        for event in events.Scalars("loss R.raw/bank"):
            found[event.step] = event.value
    losses = {r["round"]: r["clients"][0]["R.raw.loss"] for r in records}
    assert found == pytest.approx(losses)
    assert set(losses) == {1, 2}


def log_rounds(write_config, name, folder):
    config = write_config(f'log.to=["{name}"]')
    for number in (3, 4):  # as two processes, the second of which goes on
        with tracked(config, folder, SILENT) as progress:
            progress.round_done(RECORD | {"round": number, "step_norm": number / 4})
        if name == "wandb":
            time.sleep(1)  # it names the file of a process by the second


def test_mlflow_holds_the_rounds_of_one_run(write_config, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    # Without this address it is a database in the run folder, which takes longer to make.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    log_rounds(write_config, "mlflow", tmp_path)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("fedsdr").experiment_id
    (run,) = client.search_runs([experiment])
    history = client.get_metric_history(run.info.run_id, "round/step_norm")
    assert [(point.step, point.value) for point in history] == [(3, 0.75), (4, 1.0)]
    assert run.data.metrics["loss R.raw/clinic"] == 2.0
    assert run.data.params == {}


def test_mlflow_says_that_a_run_failed(write_config, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")

    def fail():
        with tracked(write_config('log.to=["mlflow"]'), tmp_path, SILENT) as progress:
            progress.round_done(RECORD)
            raise RuntimeError("the run fails")

    with pytest.raises(RuntimeError):
        fail()
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("fedsdr").experiment_id])
    assert run.info.status == "FAILED"


def leveldb_records(log):
    """The records of LevelDB's log format (doc/log_format.md there), which wandb writes after a
    header of 7 bytes: blocks of 32 KiB; each piece is a checksum (4), a length (2), a type (1)."""
    at, record = 7, b""
    log = bytes(7) + log  # blocks are counted from the start of the file
    while at + 7 <= len(log):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        size, kind = int.from_bytes(log[at + 4 : at + 6], "little"), log[at + 6]
        record += log[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or its last piece
            yield record
            record = b""


def test_wandb_holds_the_rounds_of_one_run_offline(write_config, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    log_rounds(write_config, "wandb", tmp_path)
    found, runs = {}, set()
    for path in tmp_path.rglob("*.wandb"):
        for content in leveldb_records(path.read_bytes()[7:]):
            record = Record.FromString(content)
            runs |= {record.run.run_id} - {""}
            items = record.history.item
            values = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
            if values:
                found[values["_step"]] = values["round/step_norm"]
    assert found == {3: 0.75, 4: 1.0}
    assert len(runs) == 1


def test_trackio_holds_the_rounds_of_one_run(write_config, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))  # read when it is imported
    pytest.importorskip("trackio")
    log_rounds(write_config, "trackio", tmp_path / "run")
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = SQLiteStorage.get_runs("fedsdr")
    points = SQLiteStorage.get_logs("fedsdr", run)
    assert [(p["step"], p["round/step_norm"]) for p in points] == [(3, 0.75), (4, 1.0)]
