"""Start a run on Flower and wait for its end: simulated on this machine, or on a SuperLink.

Flower's own command does the work. It exits 0 even when a run has failed, and a simulation leaves
its SuperLink running, so this asks for the status and ends what it has started.
"""

import contextlib
import dataclasses
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sysconfig
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import torch

from fedsdr.config import Config
from fedsdr.errors import UserError
from fedsdr.federation.checkpoint import load_state
from fedsdr.federation.round import Plan
from fedsdr.flower.app_folder import write_app
from fedsdr.flower.run_config import SITE_KEYS, RunConfig, to_run_config
from fedsdr.models.packing import device_of
from fedsdr.progress import Progress
from fedsdr.runs.client_runtime import Site
from fedsdr.training.methods import METHODS
from fedsdr.types import ClientData, ServerState

SAID, STOPPED = "fedsdr: ", "fedsdr stopped: "  # what the server app's lines begin with
START_SECONDS, SILENT_SECONDS, QUIET_SECONDS, POLL_SECONDS = 60.0, 120.0, 60.0, 2.0
_GOING_ON = ("pending", "starting", "running")
# Flower looks for new versions, sends telemetry and runs `uv sync`, unless it is told not to.
_QUIET = {
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "NO_COLOR": "1",
}


def simulate(
    site: Site, clients: Sequence[ClientData], plan: Plan, progress: Progress
) -> ServerState:
    """Run the rounds that are still to be done in Flower's simulation, into the site's folder.

    `engine.parallel_clients` processes have a base each and train one client at a time, with as
    many threads as this process, since the number of threads decides the last bits of a product.
    """
    config, folder = site.config, site.folder.resolve()
    engine = dataclasses.replace(
        config.engine,
        sites=len(clients),
        threads=config.engine.threads or torch.get_num_threads(),
    )
    values: RunConfig = to_run_config(dataclasses.replace(config, engine=engine))
    values |= {"out": str(folder), "resume": True}
    parallel = engine.parallel_clients
    gpus = 1 / parallel if device_of(site.model.model).type == "cuda" else 0.0
    resources = (
        f"num-supernodes={len(clients)} init-args-num-cpus={parallel} "
        f"client-resources-num-cpus=1 client-resources-num-gpus={gpus}"
    )
    with tempfile.TemporaryDirectory(prefix="fedsdr-flower-") as home:
        environment = _environment() | {"FLWR_HOME": home}
        write_app(Path(home) / "app", values)
        with _superlink(Path(home), environment):
            _run_to_its_end(
                Path(home) / "app",
                "ours",
                environment,
                progress,
                ("--federation-config", resources),
            )
    state = load_state(folder / "checkpoint")
    if state is None:
        raise RuntimeError(f"{folder}: the simulation left no checkpoint")
    return state


def submit(config: Config, out: Path, superlink: str, resume: bool, progress: Progress) -> None:
    """Run a configuration on a SuperLink that $FLWR_HOME/config.toml knows as `superlink`.

    `out` is a folder of the machine where the ServerApp runs; its last part names the experiment,
    under which the sites keep what is theirs. UserError when the run fails.
    """
    if METHODS[config.method.name].afterwards:
        raise UserError(f"method.name: '{config.method.name}' runs on one machine alone")
    # Not what is of this machine alone: no site takes it, and an address may hold a password.
    own = [key for key in SITE_KEYS if not key.startswith("model.")]
    sent = {key: value for key, value in to_run_config(config).items() if key not in own}
    values = sent | {
        "out": os.path.abspath(out),
        "experiment": out.name,
        "resume": resume,
    }
    with tempfile.TemporaryDirectory(prefix="fedsdr-flower-") as folder:
        write_app(Path(folder) / "app", values)
        _run_to_its_end(Path(folder) / "app", superlink, _environment(), progress)


def _environment() -> dict[str, str]:
    scripts = sysconfig.get_path("scripts")
    return {**os.environ, **_QUIET, "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")])}


def _run_to_its_end(
    app: Path,
    superlink: str,
    environment: dict[str, str],
    progress: Progress,
    options: Sequence[str] = (),
) -> None:
    """Start a run; show what our server app says until it ends. UserError unless it ends well."""
    run, status, lines = "", "", list[str]()
    command = ["flwr", "run", str(app), superlink, "--stream", *options]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        try:
            for line in _lines_of(process.stdout):
                if line is None:
                    if run and _status(run, superlink, environment) not in _GOING_ON:
                        break
                    continue
                lines.append(line.strip())
                if started := re.search(r"started run (\d+)", line):
                    run = started[1]
                if line.startswith(SAID):
                    progress.log(lines[-1].removeprefix(SAID))
            if run:
                status = _end_of(run, superlink, environment, progress)
        except BaseException as error:
            if run and not isinstance(error, UserError):
                _flwr(environment, "stop", run, superlink)
            raise
        finally:
            process.kill()
    if not run:
        raise UserError(f"flwr run: no run was started: {_last_words(lines)}")
    if status != "finished:completed":
        raise UserError(
            f"run {run} of Flower is {status}: {_last_words(lines)}; what is done is kept: "
            "go on with --resume"
        )


def _lines_of(stream: IO[str]) -> Iterator[str | None]:
    """Yield the lines as they come, and None for each quiet minute: a connection that was cut on
    its way says nothing, and does not end either."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in stream:
            lines.put(line)
        lines.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    while True:
        try:
            line = lines.get(timeout=QUIET_SECONDS)
        except queue.Empty:
            yield None
            continue
        if line is None:
            return
        yield line


def _status(run: str, superlink: str, environment: dict[str, str]) -> str | None:
    """Return what the SuperLink says of a run; None when it says nothing."""
    answer = _flwr(environment, "list", superlink, "--run-id", run, "--format", "json")
    known = json.loads(answer.stdout) if answer.returncode == 0 else {}
    return str(known["runs"][0]["status"]) if known.get("success") else None


def _end_of(run: str, superlink: str, environment: dict[str, str], progress: Progress) -> str:
    """Return how a run has ended. Its log may break off long before. UserError when the SuperLink
    does not answer for a while."""
    answered, told = time.monotonic(), False
    while True:
        status = _status(run, superlink, environment)
        if status is not None and status not in _GOING_ON:
            return status
        if status is not None:
            answered = time.monotonic()
            if not told:
                progress.log(f"the log of run {run} broke off; waiting for its end ({status})")
                told = True
        elif time.monotonic() - answered > SILENT_SECONDS:
            raise UserError(
                f"the SuperLink has not answered for {SILENT_SECONDS:.0f} s; run {run} may go on "
                "there: ask with flwr list, and go on with --resume once it has ended"
            )
        time.sleep(POLL_SECONDS)


def _flwr(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["flwr", *arguments]
    try:
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False,
            timeout=QUIET_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", "")


def _last_words(lines: Sequence[str]) -> str:
    """Return why our server app stopped, or else the first error, or what was said last."""
    ours = [line.removeprefix(STOPPED) for line in lines if line.startswith(STOPPED)]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
    last = [line for line in reversed(lines) if line]
    return next(iter((*ours, *errors, *last)), "nothing was said")


@contextlib.contextmanager
def _superlink(home: Path, environment: dict[str, str]) -> Iterator[None]:
    """Have a SuperLink for simulations on a free port of this machine, known as "ours"."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "ours"\n'
        f'[superlink.ours]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    command = ["flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1"]
    with (home / "superlink.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that it can be ended with all that it starts
        )
    try:
        _wait_until_healthy(process, port, home / "superlink.log")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
            return
        time.sleep(0.2)
    said = _last_words(log.read_text().splitlines())
    raise UserError(f"flower-superlink did not start in {START_SECONDS:.0f} s: {said}")
