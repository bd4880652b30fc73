"""Run a generated program in bubblewrap and tell whether it passes.

The program sees the system's and Python's libraries read-only, an empty /tmp of 64 MiB, no network,
no other process and no file of the user. As in openai/human-eval, it passes if it runs to its end
in an empty namespace within 3 seconds, without an exception.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fedsdr.errors import UserError

PYTHON = Path(sys.executable).resolve()  # a virtual environment is not visible in the sandbox
VISIBLE = ("/usr", "/bin", "/lib", "/lib64", "/nix/store", sys.base_prefix)
BWRAP = (
    "bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv",
    *(part for path in VISIBLE for part in ("--ro-bind-try", path, path)),
    "--dev", "/dev", "--remount-ro", "/dev", "--size", str(64 << 20), "--tmpfs", "/tmp",
    "--remount-ro", "/", "--chdir", "/tmp",
)  # fmt: skip
SECONDS = 3
# Standard input: the exit code that means "passed", a line break, the program.
CHILD = f"""
import os, resource, signal, sys
bounds = {{"AS": 1 << 30, "CPU": {SECONDS + 1}, "FSIZE": 1 << 20, "NPROC": 32, "CORE": 0}}
for kind, bound in bounds.items():
    limit = getattr(resource, "RLIMIT_" + kind)
    hard = resource.getrlimit(limit)[1]
    bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
    resource.setrlimit(limit, (bound, bound))
passed, _, program = sys.stdin.read().partition("\\n")
signal.setitimer(signal.ITIMER_REAL, {SECONDS})
exec(program, {{}})
os._exit(int(passed))
"""


def sandbox_prefix(unsafe: bool) -> tuple[str, ...]:
    """Return the command prefix that runs a command in bubblewrap, after one trial.

    If the trial fails: an empty prefix if `unsafe`, else UserError with the reason.
    """
    if not shutil.which(BWRAP[0]):
        fault = "bubblewrap is not installed"
    else:
        command = [*BWRAP, str(PYTHON), "-I", "-S", "-c", "pass"]
        tried = subprocess.run(command, capture_output=True, text=True)
        if tried.returncode == 0:
            return BWRAP
        fault = (tried.stderr.strip().splitlines() or ["bwrap fails"])[-1]
    if unsafe:
        return ()
    raise UserError(
        f"--suite: generated code cannot be isolated here ({fault}); install the package "
        "bubblewrap, or add --unsafe-code to run it with access to your files and network"
    )


def passes(program: str, prefix: Sequence[str]) -> bool:
    """Return whether the program runs to its end, without an exception, within its bounds."""
    passed = 20 + secrets.randbelow(100)  # unknown to a program that exits early
    with tempfile.TemporaryDirectory(prefix="fedsdr-code-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [*prefix, str(PYTHON), "-I", "-S", "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PATH": os.environ.get("PATH", os.defpath)},
            start_new_session=True,
        )
        text = f"{passed}\n{program}".encode(errors="replace")
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(text, timeout=SECONDS + 10)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode == passed
