"""The Flower ServerApp: wait for sites, have them rewrite, run the rounds.

The server needs neither data nor the model's weights: the model's configuration gives the names and
shapes of the shared branch. Its folder is a run folder without what stays at the sites.
"""

import dataclasses
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsdr.config import Config
from fedsdr.errors import UserError
from fedsdr.federation.round import RunClients, run_round
from fedsdr.files import alone, write_atomically
from fedsdr.flower.flwr_command import LOG_PREFIX, STOP_PREFIX
from fedsdr.flower.nodes import (
    POLL_SECONDS,
    Nodes,
    over_grid,
    replies,
    report_of,
    run_message,
)
from fedsdr.flower.run_config import RUN_ID, Scalar, from_run_config
from fedsdr.flower.wire import RewriteReport
from fedsdr.models.adapters import save_adapter
from fedsdr.models.cpu_choice import use_threads
from fedsdr.progress import SILENT, Progress
from fedsdr.runs.rounds import initial_tensors, load_or_init_state, save_round
from fedsdr.runs.run_folder import checked_config, save_run_config
from fedsdr.runs.run_plan import plan_of
from fedsdr.runs.run_status import noted_in
from fedsdr.runs.trackers import check_trackers, tracked
from fedsdr.training.methods import METHODS
from fedsdr.types import ClientFault, ClientTask, ClientUpdate, ServerState

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the job that the run configuration describes."""
    try:
        _main(grid, context.run_config)
    except UserError as error:
        _print(f"{STOP_PREFIX}{error}")
        raise


def _print(line: str) -> None:
    print(line, flush=True)  # Flower streams it to whoever started the run


def _main(grid: Grid, run: Mapping[str, Scalar]) -> None:
    config, out = from_run_config(run), Path(str(run["out"])).expanduser()
    progress = dataclasses.replace(SILENT, log=lambda line: _print(f"{LOG_PREFIX}{line}"))
    simulated = not run["experiment"]  # then `fedsdr run` does all but the rounds
    check_trackers(config)
    with alone(out):
        config = checked_config(config, out, resume=bool(run["resume"]))
        method = METHODS[plan_of(config, {}).settings.method]
        if method.afterwards and not simulated:
            raise UserError(
                f"method.name: '{method.name}' trains after the last round; deploy another"
            )
        rewriting = method.rewrites and not simulated
        with noted_in(out, progress) as noted, tracked(config, out, noted) as watched:
            state = serve(grid, config, out, watched, rewriting=rewriting)
        if method.global_model:
            folder, lora, base = out / "global", config.lora, config.model.name
            save_adapter(folder, state.shared, method.global_model, lora=lora, base_name=base)
    progress.log(f"{state.round} rounds are done; the global adapter is in {out / 'global'}")


def serve(
    grid: Grid, config: Config, out: Path, progress: Progress, *, rewriting: bool
) -> ServerState:
    """Run the remaining rounds over the grid into the folder `out`; return the last state.

    With `rewriting`, have all sites rewrite first. A client that joins late takes part from the
    next round on; one that is away is recorded as refused. UserError if too few sites join or too
    few updates are accepted: finished rounds are kept, and the run can be resumed.
    """
    if config.engine.threads:
        use_threads(config.engine.threads)
    rounds, seconds = config.federation.rounds, config.engine.join_seconds
    plan = plan_of(config, {})
    state = load_or_init_state(out, plan, rounds, lambda: initial_tensors(config))
    save_run_config(config, out / "config.toml")
    plan = dataclasses.replace(plan, run_id=_run_id(out))
    nodes = Nodes(grid, progress.log, plan.run_id)
    connected = _wait(nodes, config.engine.sites or plan.min_updates, seconds)
    if rewriting and state.round < rounds:
        _rewrite(grid, connected, plan.run_id, config.engine.rewrite_seconds, progress)
    known = {*state.accepted, *connected}
    while state.round < rounds:
        connected = _wait(nodes, plan.min_updates, seconds)
        known |= connected.keys()
        clients, announced = tuple(sorted(known)), dict(nodes.announced)
        plan = dataclasses.replace(plan, clients=clients, announced=announced)
        ask = over_grid(grid, connected, config.engine.round_seconds)
        run_clients = _shown(ask, rounds, progress)
        state, record = run_round(state, plan, run_clients)
        refused = (*record.refused, *nodes.take_refusals())
        save_round(out, state, dataclasses.replace(record, refused=refused), progress)
    return state


def _shown(run_clients: RunClients, rounds: int, progress: Progress) -> RunClients:
    """Return the engine with a step that shows how many clients of the round have answered."""

    def run(tasks: Sequence[ClientTask]) -> Iterator[ClientUpdate | ClientFault]:
        with progress.bar(f"round {tasks[0].round} of {rounds}, clients", len(tasks)) as advance:
            for answer in run_clients(tasks):
                advance(1)
                yield answer

    return run


def _run_id(out: Path) -> str:
    """Return the number that tells this run from others of its name, made once."""
    path = out / RUN_ID
    if not path.exists():
        write_atomically(path, secrets.token_hex(8))
    return path.read_text(encoding="utf-8")


def _wait(nodes: Nodes, wanted: int, seconds: float) -> dict[str, int]:
    """Return client -> node as soon as `wanted` clients have joined and no other node is about to.

    UserError if fewer have joined after `seconds`.
    """
    began = time.monotonic()
    connected = nodes.poll(ask_refused=True)
    while len(connected) < wanted or nodes.awaiting_names:
        if len(connected) < wanted and time.monotonic() - began > seconds:
            raise UserError(
                f"{len(connected)} of {wanted} sites joined in {seconds:g} s "
                f"({', '.join(sorted(connected)) or 'none'}); start the others, or change "
                "engine.sites (before round 1), federation.min_updates or engine.join_seconds"
            )
        time.sleep(POLL_SECONDS)
        connected = nodes.poll()
    return connected


def _rewrite(
    grid: Grid, connected: Mapping[str, int], run_id: str, seconds: float, progress: Progress
) -> None:
    """Have every site rewrite its training answers. A late site does it in its first round."""
    messages = {
        client: run_message(run_id, node, "train.rewrite", ttl=seconds)
        for client, node in connected.items()
    }
    for client, reply in replies(grid, messages, seconds):
        report = report_of(reply, RewriteReport)
        if isinstance(report, RewriteReport):
            counts = f"{report.rewritten} of {report.answers} answers " if report.answers else ""
            report = f"{counts}rewritten"
        progress.log(f"  {client}: {report}")
