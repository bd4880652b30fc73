"""A scheduler's signals stop a command as Ctrl-C does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fedsdr.federation.checkpoint import load_state
from fedsdr.files import alone

SOURCE = Path(__file__).parents[2] / "src"


LONG = ("--set", "method.name=plain", "--set", "federation.rounds=9999")


def start(config, out, before=()):
    return subprocess.Popen(
        [*before, sys.executable, "-m", "fedsdr.cli.main", "run", config, "--out", out, *LONG],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # Tests that run under nohup must not hand its ignored SIGHUP on.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )


def wait_for_rounds(process, out, count):
    path = out / "rounds.jsonl"
    while not path.exists() or path.read_text().count("\n") < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def test_a_stopped_run_keeps_its_rounds_and_releases_its_folder(write_config, tmp_path):
    write_config()
    out = tmp_path / "run"
    process = start(tmp_path / "config.toml", out)
    wait_for_rounds(process, out, 2)  # so that the checkpoint of the first is there
    process.send_signal(signal.SIGHUP)  # SIGTERM: tests/flower/test_flower_running.py
    _, error = process.communicate(timeout=60)
    assert process.returncode == 129
    assert "fedsdr: stopped; finished work is kept; go on with: fedsdr run " in error
    assert "Traceback" not in error
    with alone(out):
        rounds = (out / "rounds.jsonl").read_text().splitlines()
    assert load_state(out / "checkpoint").round in (len(rounds), len(rounds) - 1)


def test_nohup_is_respected(write_config, tmp_path):
    write_config()
    out = tmp_path / "run"
    process = start(tmp_path / "config.toml", out, before=("nohup",))
    wait_for_rounds(process, out, 1)
    process.send_signal(signal.SIGHUP)
    wait_for_rounds(process, out, 5)
    process.kill()
    process.communicate()
