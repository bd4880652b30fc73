"""Run an app with Flower's own command and wait for its end.

`flwr run` exits with 0 even if the run has failed, and its log stream may break off long before the
run ends, so the status comes from `flwr list`.
"""

import json
import os
import queue
import re
import subprocess
import sysconfig
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from fedsdr.errors import UserError
from fedsdr.progress import Progress

LOG_PREFIX, STOP_PREFIX = "fedsdr: ", "fedsdr stopped: "  # of the ServerApp's lines
POLL_SECONDS = 2.0
QUIET_SECONDS = 60.0  # without a line of the log, before the status is asked for
UNREACHABLE_SECONDS = 120.0  # without a status, before the SuperLink is given up on
_UNFINISHED = ("pending", "starting", "running")
# Otherwise Flower looks for new versions, sends telemetry and runs `uv sync`.
_SETTINGS = {
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "NO_COLOR": "1",
}


def flower_environment() -> dict[str, str]:
    """Return the environment of Flower's commands: ours, with this installation's scripts first."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    return {**os.environ, **_SETTINGS, "PATH": path}


def run_app(
    app: Path,
    superlink: str,
    environment: Mapping[str, str],
    progress: Progress,
    options: Sequence[str] = (),
    *,
    stop_on_exit: bool = True,
) -> None:
    """Start a run, show what the ServerApp logs, and return when the run has ended.

    UserError unless it completes. If the user interrupts this process, the run is stopped at the
    SuperLink as well (`stop_on_exit`).
    """
    run, status, lines = "", "", list[str]()
    command = ["flwr", "run", str(app), superlink, "--stream", *options]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        try:
            for line in _lines(process.stdout):
                if line is None:
                    if run and _status(run, superlink, environment) not in _UNFINISHED:
                        break
                    continue
                lines.append(line.strip())
                if started := re.search(r"started run (\d+)", line):
                    run = started[1]
                if line.startswith(LOG_PREFIX):
                    progress.log(lines[-1].removeprefix(LOG_PREFIX))
            if run:
                status = _wait_for_end(run, superlink, environment, progress)
        except BaseException as error:
            if run and stop_on_exit and not isinstance(error, UserError):
                _flwr(environment, "stop", run, superlink)
            raise
        finally:
            process.kill()
    if not run:
        raise UserError(f"flwr run: no run was started: {failure_reason(lines)}")
    if status != "finished:completed":
        raise UserError(
            f"run {run} of Flower is {status}: {failure_reason(lines)}; finished rounds are kept, "
            "continue with --resume"
        )


def failure_reason(lines: Sequence[str]) -> str:
    """Return why the ServerApp stopped, else the first error, else the last line."""
    ours = [line.removeprefix(STOP_PREFIX) for line in lines if line.startswith(STOP_PREFIX)]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
    last = [line for line in reversed(lines) if line]
    return next(iter((*ours, *errors, *last)), "no output")


def _lines(stream: IO[str]) -> Iterator[str | None]:
    """Yield lines as they arrive, and None for each quiet minute: a connection that is cut on the
    way neither yields a line nor ends."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in stream:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=QUIET_SECONDS)
        except queue.Empty:
            yield None
            continue
        if line is None:
            return
        yield line


def _wait_for_end(
    run: str, superlink: str, environment: Mapping[str, str], progress: Progress
) -> str:
    """Return the final status of a run. UserError if the SuperLink stops answering."""
    answered, warned = time.monotonic(), False
    while True:
        status = _status(run, superlink, environment)
        if status is not None and status not in _UNFINISHED:
            return status
        if status is not None:
            answered = time.monotonic()
            if not warned:
                progress.log(f"the log of run {run} broke off; waiting for its end ({status})")
                warned = True
        elif time.monotonic() - answered > UNREACHABLE_SECONDS:
            raise UserError(
                f"the SuperLink has not answered for {UNREACHABLE_SECONDS:.0f} s; run {run} may "
                "still be running there: check with flwr list, and continue with --resume when it "
                "has ended"
            )
        time.sleep(POLL_SECONDS)


def _status(run: str, superlink: str, environment: Mapping[str, str]) -> str | None:
    """Return the status of a run at the SuperLink; None if there is no answer."""
    answer = _flwr(environment, "list", superlink, "--run-id", run, "--format", "json")
    known = json.loads(answer.stdout) if answer.returncode == 0 else {}
    return str(known["runs"][0]["status"]) if known.get("success") else None


def _flwr(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["flwr", *arguments]
    try:
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False,
            timeout=QUIET_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", "")
