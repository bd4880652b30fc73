"""No process that was started under the supervisor outlives whoever started the supervisor."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SUPERVISED = [sys.executable, "-m", "fedsdr.flower.supervisor"]
# A child in a session of its own, whose parent ends at once: SIGTERM and SIGHUP are ignored.
ORPHAN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
open(sys.argv[1] + "/" + str(os.getpid()), "w").close()
time.sleep(600)
"""


def pids_in(folder: Path, count: int) -> list[int]:
    end = time.monotonic() + 60
    while len(found := list(folder.iterdir())) < count:
        assert time.monotonic() < end, "the processes did not start"
        time.sleep(0.05)
    return [int(path.name) for path in found]


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def are_gone(pids: list[int], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while running := any(map(is_running, pids)):
        if time.monotonic() > end:
            break
        time.sleep(0.05)
    return not running


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are found on Linux alone")
@pytest.mark.parametrize("end", ["closed", "killed"])
def test_all_descendants_end_when_the_starting_process_ends(end, tmp_path):
    command = [*SUPERVISED, sys.executable, "-c", ORPHAN, str(tmp_path)]
    starter = subprocess.Popen(
        [
            sys.executable, "-c",
            "import subprocess, sys; "
            "p = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True); "
            "sys.stdin.read(); p.stdin.close(); p.wait()",
            *command,
        ],
        stdin=subprocess.PIPE,
    )  # fmt: skip
    pids = pids_in(tmp_path, 2)
    if end == "killed":
        starter.kill()
    else:
        starter.stdin.close()
    starter.wait(timeout=30)
    assert are_gone(pids)


def test_the_supervisor_ends_with_its_command(tmp_path):
    command = [*SUPERVISED, sys.executable, "-c", "print('done')"]
    read, write = os.pipe()  # standard input stays open
    done = subprocess.run(command, stdin=read, capture_output=True, text=True, timeout=60)
    os.close(read)
    os.close(write)
    assert done.stdout == "done\n"
