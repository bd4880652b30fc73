"""Run one generated program where it can do little harm, and say whether it came to its end.

The program runs in a process of its own (`guarded.py`), in a folder that is removed afterwards,
with bounds on time, memory and the size of files, without input, other programs or network: in an
empty network namespace where Linux lets us make one, and with Python's own sockets refused. What
this does not protect from is said in docs/suites.md.
"""

import contextlib
import functools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

GUARD = Path(__file__).with_name("guarded.py")


def runs_well(program: str, *, seconds: float = 10.0, megabytes: int = 1024) -> bool:
    """Return whether the program ends by itself, without an exception, within its bounds."""
    # Only a program that reached its end says this: one that exits early does not know it.
    secret = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="fedsdr-code-", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-I", "-S", str(GUARD), str(int(seconds) + 1), str(megabytes)]
        process = subprocess.Popen(
            [*_without_network(), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "HOME": folder, "TMPDIR": folder},
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(f"{secret}\n{program}".encode(), timeout=seconds)
        except subprocess.TimeoutExpired:
            said = b""
        finally:
            _end(process)
    return said.endswith(secret.encode())


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it and all that it started in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@functools.cache
def _without_network() -> tuple[str, ...]:
    """Return what to put before a command so that it has no network, if this system allows it."""
    prefix = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child")
    if sys.platform != "linux" or not shutil.which(prefix[0]):
        return ()
    tried = subprocess.run([*prefix, "true"], capture_output=True)
    return prefix if tried.returncode == 0 else ()
