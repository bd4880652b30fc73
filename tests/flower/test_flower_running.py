"""Flower's own runtimes, with processes of their own: the simulation of `fedsdr run`."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from fedsdr.config import (
    AlgorithmConfig,
    Config,
    DataConfig,
    LoraConfig,
    MethodConfig,
    ModelConfig,
    TeacherConfig,
)
from fedsdr.errors import UserError
from fedsdr.files import alone
from fedsdr.progress import SILENT

pytest.importorskip("flwr")

from fedsdr.flower import flwr_command
from fedsdr.flower.launch import submit
from fedsdr.flower.node_config import node_config_of
from fedsdr.flower.run_config import from_run_config, to_run_config

SOURCE = Path(__file__).parents[2] / "src"


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "fedsdr.cli.main", "run", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process):
    """Wait for a process that must succeed; return its standard error."""
    _, error = process.communicate(timeout=300)  # far more than it takes, but on a busy machine
    assert process.returncode == 0, error
    return error


def running(processes):
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_a_stopped_simulation_leaves_no_process_and_resumes_to_the_bytes_of_one_process(
    write_config, tmp_path
):
    write_config()
    config, one, other = (tmp_path / name for name in ("config.toml", "one", "other"))
    simulated = (config, "--out", other, "--engine", "flower", "--set")
    process = start(*simulated, "federation.rounds=999")
    while not (other / "rounds.jsonl").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) > 5
    with pytest.raises(UserError, match="another process"), alone(other):
        pass  # the ServerApp holds the lock
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "fedsdr: stopped; finished work is kept" in error
    assert running(started) == []

    done = (other / "rounds.jsonl").read_text().count("\n")
    rounds = f"federation.rounds={done + 1}"
    assert f"round {done + 1}: 3 updates" in finished(start(*simulated, rounds, "--resume"))
    finished(start(config, "--out", one, "--set", rounds))
    learnt = sorted(p.relative_to(one) for p in one.rglob("*.safetensors"))
    assert len(learnt) > 6
    for path in learnt:
        assert (other / path).read_bytes() == (one / path).read_bytes(), path
    scores = [json.loads((out / "results.json").read_text())["clients"] for out in (one, other)]
    assert scores[0] == scores[1]


# A `flwr` that starts run 7 and answers `flwr list` with one status after another; None fails.
FAKE_FLWR = """#!{python}
import json, pathlib, shutil, sys, time
folder = pathlib.Path({folder!r})
if sys.argv[1] == "run":
    shutil.copy(sys.argv[2] + "/pyproject.toml", folder / "sent.toml")
    print("Successfully started run 7")
    print("fedsdr: round 1: 3 updates", "INFO : other", {last!r}, sep="\\n", flush=True)
    time.sleep({hang})
elif sys.argv[1] == "stop":
    (folder / "stopped").write_text(sys.argv[2])
elif sys.argv[1] == "list":
    asked = folder / "asked"
    count = len(asked.read_text()) if asked.exists() else 0
    asked.write_text("." * (count + 1))
    status = {statuses!r}[min(count, len({statuses!r}) - 1)]
    if status is None:
        sys.exit(1)
    print(json.dumps({{"success": True, "runs": [{{"run-id": "7", "status": status}}]}}))
"""


@pytest.fixture
def fake_flwr(tmp_path, monkeypatch):
    """Return a function that puts a fake `flwr` in the place of Flower's."""

    def install(*statuses, last="", hang=0):
        script = tmp_path / "scripts" / "flwr"
        script.parent.mkdir()
        script.write_text(
            FAKE_FLWR.format(
                python=sys.executable, folder=str(tmp_path), last=last, hang=hang, statuses=statuses
            )
        )
        script.chmod(0o755)
        monkeypatch.setattr(flwr_command.sysconfig, "get_path", lambda name: str(script.parent))
        for name, seconds in (("POLL", 0.01), ("QUIET", 1.0), ("UNREACHABLE", 0.5)):
            monkeypatch.setattr(flwr_command, f"{name}_SECONDS", seconds)

    return install


def submitted(tmp_path, config=Config()):  # noqa: B008
    """Submit a configuration and return the log."""
    log = []
    submit(config, tmp_path / "out", "there", False, replace(SILENT, log=log.append))
    return log


def test_the_lines_of_the_server_are_shown_and_a_completed_run_is_no_error(tmp_path, fake_flwr):
    fake_flwr("finished:completed")
    assert submitted(tmp_path) == ["round 1: 3 updates"]


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        ("fedsdr stopped: too few sites", "is finished:failed: too few sites"),
        ("MemoryError: full", "is finished:failed: MemoryError: full"),
    ],
)
def test_a_failed_run_is_an_error_though_flower_exits_with_0(last, reason, tmp_path, fake_flwr):
    fake_flwr("finished:failed", last=last)
    with pytest.raises(UserError, match=reason):
        submitted(tmp_path)


def test_a_log_that_breaks_off_is_not_taken_for_the_end_of_a_run(tmp_path, fake_flwr):
    fake_flwr("running", None, "running", "finished:completed")
    log = submitted(tmp_path)
    assert log[1:] == ["the log of run 7 broke off; waiting for its end (running)"]
    assert len((tmp_path / "asked").read_text()) == 4


def test_a_superlink_that_stops_answering_ends_the_wait(tmp_path, fake_flwr):
    fake_flwr(None)
    with pytest.raises(UserError, match="run 7 may still be running there"):
        submitted(tmp_path)


def test_a_stream_that_hangs_is_left_when_the_run_has_ended(tmp_path, fake_flwr):
    fake_flwr("finished:completed", hang=60)
    began = time.monotonic()
    submitted(tmp_path)
    assert time.monotonic() - began < 30


def test_a_run_whose_starter_is_interrupted_is_stopped_at_the_superlink(tmp_path, fake_flwr):
    fake_flwr("running", hang=60)

    def interrupted(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        submit(Config(), tmp_path / "out", "there", False, replace(SILENT, log=interrupted))
    assert (tmp_path / "stopped").read_text() == "7"


def test_settings_of_the_starting_machine_are_not_sent(tmp_path, fake_flwr):
    fake_flwr("finished:completed")
    submitted(
        tmp_path,
        Config(
            data=DataConfig(clients="/home/me/rows"),
            model=ModelConfig(name="org/model"),
            teacher=TeacherConfig(engine="openai", model="m", url="http://me:SECRET@here/v1"),
        ),
    )
    sent = (tmp_path / "sent.toml").read_text()
    assert "org/model" in sent
    assert not re.search("SECRET|/home/me", sent)


def test_a_method_that_trains_after_the_last_round_is_not_deployed(tmp_path):
    config = replace(Config(), method=MethodConfig(name="plain-personal"))
    with pytest.raises(UserError, match="'plain-personal' runs on one machine alone"):
        submitted(tmp_path, config)


def test_a_configuration_survives_the_scalars_of_a_run_configuration():
    config = Config(
        seed=3,
        data=DataConfig(include=["bank", "clinic"], source=["/a.jsonl", "/b.jsonl"]),
        algorithm=AlgorithmConfig(name="fedadam", lr=0.5),
        lora=LoraConfig(target_modules="all-linear", alpha=4.0),
    )
    values = to_run_config(config)
    assert all(isinstance(value, (bool, int, float, str)) for value in values.values())
    assert from_run_config({**values, "out": "/run", "experiment": "x", "resume": True}) == config
    with pytest.raises(UserError, match=r"'lora.rnk'; did you mean 'lora.rank'"):
        from_run_config({**values, "lora.rnk": 4})
    with pytest.raises(UserError, match=r"'data.include'"):
        from_run_config({**values, "data.include": "[" * 5000})


def test_a_site_takes_no_path_and_no_right_from_the_server():
    theirs = to_run_config(
        Config(
            data=DataConfig(clients="/etc"),
            model=ModelConfig(name="org/model", trust_remote_code=True),
            teacher=TeacherConfig(url="http://elsewhere", model="m", allow_remote=True),
        )
    ) | {"experiment": "first"}
    site = {"client": "bank", "data": "/rows.jsonl", "state-dir": "/state", "train.batch_size": 2}
    node = node_config_of(theirs, site)
    assert node.folder == Path("/state/first/bank")
    assert (node.config.model.name, node.config.data.clients) == ("org/model", "/rows.jsonl")
    assert node.config.train.batch_size == 2
    assert not node.config.model.trust_remote_code
    assert node.config.teacher == TeacherConfig()
    for experiment in ("../../home", "", "a/b", "x" * 100_000, "x\n"):
        with pytest.raises(UserError, match="cannot name a folder"):
            node_config_of({**theirs, "experiment": experiment}, site)
    with pytest.raises(UserError, match="'state-dir' is not set"):
        node_config_of(theirs, {"client": "bank", "data": "/rows.jsonl"})
