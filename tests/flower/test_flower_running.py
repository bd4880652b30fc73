"""Flower's own runtimes, with processes of its own: the simulation of `fedsdr run`."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

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
from fedsdr.flower import launch
from fedsdr.flower.run_config import from_run_config, to_run_config
from fedsdr.progress import SILENT

pytest.importorskip("flwr")

from fedsdr.flower import client_app

SOURCE = Path(__file__).parents[2] / "src"


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "fedsdr.cli.main", "run", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(SOURCE), **environment},
        capture_output=True,
        text=True,
        timeout=300,  # far more than it takes, but on a busy machine
    )


def processes_of(home):
    """Return the command lines of processes that were started with this environment variable."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"FEDSDR_CACHE={home}".encode() in environment.read_bytes():
                found.append(environment.with_name("cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended, or is not ours to read
            continue
    return found


def test_a_simulated_run_has_the_bytes_of_one_process_and_leaves_no_process(write_config, tmp_path):
    write_config()
    cache = tmp_path / "a cache of its own"
    for engine in ("in-process", "flower"):
        done = run(
            tmp_path / "config.toml", "--out", tmp_path / engine, "--engine", engine,
            "--set", "federation.rounds=2", FEDSDR_CACHE=str(cache), OMP_NUM_THREADS="1",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert "round 2: 3 updates" in done.stderr
    assert processes_of(cache) == []
    one, other = tmp_path / "in-process", tmp_path / "flower"
    learnt = sorted(p.relative_to(one) for p in one.rglob("*.safetensors"))
    assert len(learnt) > 6
    for path in learnt:
        assert (other / path).read_bytes() == (one / path).read_bytes(), path
    scores = [json.loads((out / "results.json").read_text())["clients"] for out in (one, other)]
    assert scores[0] == scores[1]


FAKE_FLWR = """#!{python}
import json, sys
if sys.argv[1] == "run":
    print("Successfully started run 7")
    print("fedsdr: round 1: 3 updates", "INFO : nothing of ours", sep="\\n")
    print({last!r})
elif sys.argv[1] == "list":
    print(json.dumps({{"success": True, "runs": [{{"run-id": "7", "status": {status!r}}}]}}))
"""


@pytest.mark.parametrize(
    ("status", "last", "error"),
    [
        ("finished:completed", "", None),
        ("finished:failed", "fedsdr stopped: too few sites", "is finished:failed: too few sites"),
        ("finished:failed", "MemoryError: full", "is finished:failed: MemoryError: full"),
    ],
)
def test_flowers_exit_code_is_not_believed(status, last, error, tmp_path, monkeypatch):
    script = tmp_path / "flwr"
    script.write_text(FAKE_FLWR.format(python=sys.executable, status=status, last=last))
    script.chmod(0o755)
    monkeypatch.setattr(launch.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    said = []
    arguments = (Config(), tmp_path / "out", "there", False, replace(SILENT, log=said.append))
    if error is None:
        launch.submit(*arguments)
    else:
        with pytest.raises(UserError, match=error):
            launch.submit(*arguments)
    assert said == ["round 1: 3 updates"]


def test_a_method_that_trains_after_the_last_round_is_not_deployed(tmp_path):
    config = replace(Config(), method=MethodConfig(name="plain-personal"))
    with pytest.raises(UserError, match="'plain-personal' runs on one machine alone"):
        launch.submit(config, tmp_path, "there", False, SILENT)


def test_a_configuration_survives_the_words_and_numbers_that_flower_carries():
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


def test_what_is_of_the_starting_machine_alone_is_not_sent(tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(
        launch,
        "_run_to_its_end",
        lambda app, *_: sent.append((app / "pyproject.toml").read_text()),
    )
    config = Config(
        data=DataConfig(clients="/home/me/rows"),
        model=ModelConfig(name="org/model"),
        teacher=TeacherConfig(engine="openai", model="m", url="http://me:SECRET@here/v1"),
    )
    launch.submit(config, tmp_path, "there", False, SILENT)
    assert "org/model" in sent[0]
    assert not re.search("SECRET|/home/me", sent[0])


def test_a_site_takes_no_path_and_no_right_from_the_server():
    theirs = to_run_config(
        Config(
            data=DataConfig(clients="/etc"),
            model=ModelConfig(name="org/model", trust_remote_code=True),
            teacher=TeacherConfig(url="http://elsewhere", model="m", allow_remote=True),
        )
    )
    node = {"client": "bank", "data": "/rows.jsonl", "state-dir": "/state", "train.batch_size": 2}
    items = tuple({**theirs, "experiment": "first"}.items()), tuple(node.items())
    config, folder = client_app._config_and_folder(*items)
    assert folder == Path("/state/first/bank")
    assert (config.model.name, config.data.clients) == ("org/model", "/rows.jsonl")
    assert config.train.batch_size == 2
    assert not config.model.trust_remote_code
    assert config.teacher == TeacherConfig()
    for changed, words in (
        ({"experiment": "../../home"}, "cannot name a folder"),
        ({"experiment": ""}, "cannot name a folder"),
    ):
        with pytest.raises(UserError, match=words):
            client_app._config_and_folder(tuple({**theirs, **changed}.items()), items[1])
    with pytest.raises(UserError, match="'state-dir' is not set"):
        client_app._config_and_folder(items[0], (("client", "bank"), ("data", "/rows.jsonl")))


@pytest.mark.parametrize("answers", [True, False])
def test_a_log_that_breaks_off_is_not_taken_for_the_end_of_a_run(answers, tmp_path, monkeypatch):
    asked = []

    def flwr(environment, *arguments):
        asked.append(arguments)
        status = "finished:completed" if len(asked) == 4 else "running"
        known = {"success": True, "runs": [{"status": status}]}
        silent = len(asked) == 2 or not answers  # once is not for good
        return subprocess.CompletedProcess([], 1 if silent else 0, json.dumps(known), "")

    monkeypatch.setattr(launch, "_flwr", flwr)
    monkeypatch.setattr(launch, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(launch, "SILENT_SECONDS", 0.1)
    said = []
    arguments = ("7", "there", {}, replace(SILENT, log=said.append))
    if answers:
        assert launch._end_of(*arguments) == "finished:completed"
        assert said == ["the log of run 7 broke off; waiting for its end (running)"]
    else:
        with pytest.raises(UserError, match="run 7 may go on there"):
            launch._end_of(*arguments)


def test_a_stream_that_hangs_is_left_when_the_run_has_ended(tmp_path, monkeypatch):
    script = tmp_path / "flwr"
    hanging = 'print("", flush=True)\n    import time; time.sleep(60)'
    script.write_text(
        FAKE_FLWR.format(python=sys.executable, status="finished:completed", last="").replace(
            "print('')", hanging
        )
    )
    assert "time.sleep" in script.read_text()
    script.chmod(0o755)
    monkeypatch.setattr(launch.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(launch, "QUIET_SECONDS", 1.0)
    began = time.monotonic()
    launch.submit(Config(), tmp_path / "out", "there", False, SILENT)
    assert time.monotonic() - began < 30
