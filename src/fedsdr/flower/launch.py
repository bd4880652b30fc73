"""Start a run on Flower and wait for its end: simulated on this machine, or on a SuperLink."""

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fedsdr.config import Config
from fedsdr.errors import UserError
from fedsdr.federation.checkpoint import load_state
from fedsdr.federation.round import Plan
from fedsdr.flower.app_folder import write_app
from fedsdr.flower.flwr_command import failure_reason, flower_environment, run_app
from fedsdr.flower.run_config import SITE_KEYS, RunConfig, to_run_config
from fedsdr.models.packing import device_of
from fedsdr.progress import Progress
from fedsdr.runs.client_runtime import ClientRuntime
from fedsdr.training.methods import METHODS
from fedsdr.types import ClientData, ServerState

START_SECONDS = 60.0  # for a SuperLink on this machine


def simulate(
    runtime: ClientRuntime, clients: Sequence[ClientData], plan: Plan, progress: Progress
) -> ServerState:
    """Run the remaining rounds in Flower's simulation, into the runtime's folder.

    The ServerApp holds the folder's lock meanwhile. `engine.parallel_clients` processes load a base
    each and train one client at a time, with as many threads as this process: the number of threads
    decides the last bits of a product.
    """
    config, folder = runtime.config, runtime.folder.resolve()
    engine = dataclasses.replace(config.engine, sites=len(clients))
    values: RunConfig = to_run_config(dataclasses.replace(config, engine=engine))
    values |= {"out": str(folder), "resume": True}
    parallel = engine.parallel_clients
    gpus = 1 / parallel if device_of(runtime.model.model).type == "cuda" else 0.0
    resources = (
        f"num-supernodes={len(clients)} init-args-num-cpus={parallel} "
        f"client-resources-num-cpus=1 client-resources-num-gpus={gpus}"
    )
    with tempfile.TemporaryDirectory(prefix="fedsdr-flower-") as home:
        environment = flower_environment() | {"FLWR_HOME": home}
        app = Path(home) / "app"
        write_app(app, values)
        with _superlink(Path(home), environment) as name:
            options = ("--federation-config", resources)
            run_app(app, name, environment, progress, options, stop_on_exit=False)
    state = load_state(folder / "checkpoint")
    if state is None:
        raise RuntimeError(f"{folder}: the simulation left no checkpoint")
    return state


def submit(config: Config, out: Path, superlink: str, resume: bool, progress: Progress) -> None:
    """Run a configuration on the SuperLink that $FLWR_HOME/config.toml lists as `superlink`.

    `out` is a folder of the machine where the ServerApp runs; its last part names the experiment,
    under which the sites keep their state. UserError if the run fails.
    """
    if METHODS[config.method.name].afterwards:
        raise UserError(f"method.name: '{config.method.name}' runs on one machine alone")
    # Settings of this machine are not sent: no site takes them, and a URL may hold a password.
    local = [key for key in SITE_KEYS if not key.startswith("model.")]
    values = {key: value for key, value in to_run_config(config).items() if key not in local}
    values |= {"out": os.path.abspath(out), "experiment": out.name, "resume": resume}
    with tempfile.TemporaryDirectory(prefix="fedsdr-flower-") as folder:
        write_app(Path(folder) / "app", values)
        run_app(Path(folder) / "app", superlink, flower_environment(), progress)


@contextlib.contextmanager
def _superlink(home: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Run a SuperLink for simulations on a free port of this machine; yield the name under which
    its address stands in FLWR_HOME."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (home / "config.toml").write_text(
        '[superlink]\ndefault = "local"\n'
        f'[superlink.local]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    command = [sys.executable, "-m", "fedsdr.flower.supervisor", "flower-superlink"]
    command += ["--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)]
    log = home / "superlink.log"
    with log.open("w") as output:
        supervisor = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process alone
        )
    assert supervisor.stdin
    try:
        _wait_until_healthy(supervisor, port, log)
        yield "local"
    finally:
        supervisor.stdin.close()  # the supervisor kills the SuperLink and all its processes
        supervisor.wait()


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
            return
        time.sleep(0.2)
    reason = failure_reason(log.read_text().splitlines())
    raise UserError(f"flower-superlink did not start in {START_SECONDS:.0f} s: {reason}")
