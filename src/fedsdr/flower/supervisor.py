"""Run a command; when standard input closes, kill it and every process that it has started.

    python -m fedsdr.flower.supervisor COMMAND...

`fedsdr run` starts the SuperLink of a simulation through this module and holds the other end of the
pipe, so that no process of a simulation outlives it, whichever way it ends (SIGKILL included).
"""

import contextlib
import ctypes
import select
import signal
import subprocess
import sys

import psutil

_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


def main() -> None:
    """Run the command of sys.argv until it ends or standard input closes."""
    if sys.platform == "linux":  # orphaned descendants become children, so that they are found
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    try:
        while process.poll() is None and not select.select([sys.stdin], [], [], 0.2)[0]:
            pass
    finally:
        kill_descendants()


def kill_descendants() -> None:
    """Kill all descendants of this process, the youngest generation first."""
    while children := psutil.Process().children(recursive=True):
        for child in reversed(children):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, timeout=1)


if __name__ == "__main__":
    main()
