"""Flower's side of the server: wait for sites, have them rewrite, run the rounds.

The server needs no data and keeps no weights of the model: of its shape it makes the names and
shapes of the shared branch. Its folder is that of any run, without what stays at the sites.
"""

import contextlib
import dataclasses
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from fedsdr.config import Config, save_config
from fedsdr.errors import UserError
from fedsdr.files import alone, write_atomically
from fedsdr.flower.launch import SAID, STOPPED
from fedsdr.flower.nodes import (
    POLL_SECONDS,
    Sites,
    of_run,
    over_grid,
    replies,
    told,
)
from fedsdr.flower.run_config import RUN_ID, Scalar, from_run_config
from fedsdr.models.adapters import save_adapter
from fedsdr.models.base_model import load_shape
from fedsdr.models.two_branch import BranchedModel
from fedsdr.progress import SILENT, Progress
from fedsdr.runs.rounds import initial_shared, load_or_init_state, next_round
from fedsdr.runs.run_folder import checked_config
from fedsdr.runs.run_plan import plan_of
from fedsdr.training.methods import METHODS
from fedsdr.types import ServerState

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the job that the run configuration describes."""
    try:
        _main(grid, context.run_config)
    except UserError as error:
        _say(f"{STOPPED}{error}")
        raise


def _say(line: str) -> None:
    print(line, flush=True)  # Flower carries it to whoever started the run


def _main(grid: Grid, run: Mapping[str, Scalar]) -> None:
    config, out = from_run_config(run), Path(str(run["out"])).expanduser()
    config = checked_config(config, out, resume=bool(run["resume"]))
    progress = dataclasses.replace(SILENT, log=lambda line: _say(f"{SAID}{line}"))
    method = METHODS[plan_of(config, {}).settings.method]
    simulated = not run["experiment"]  # then whoever started it does what is not of the rounds
    if method.afterwards and not simulated:
        raise UserError(f"method.name: '{method.name}' trains after the last round; deploy another")
    with contextlib.nullcontext() if simulated else alone(out):
        state = serve(grid, config, out, progress, rewriting=method.rewrites and not simulated)
    if method.global_model:
        folder, alpha = out / "global", config.lora.alpha
        base = config.model.name
        save_adapter(folder, state.shared, method.global_model, alpha=alpha, base_name=base)
    progress.log(f"{state.round} rounds are done; the global adapter is in {out / 'global'}")


def serve(
    grid: Grid, config: Config, out: Path, progress: Progress, *, rewriting: bool
) -> ServerState:
    """Run the rounds that are still to be done over the grid, into the folder `out`; with
    `rewriting`, have all sites rewrite first.

    A client that joins late takes part from the next round on; one that is away is recorded as
    refused. UserError when too few sites join, or too few updates can be counted: what is done is
    kept, and the run can be resumed.
    """
    if config.engine.threads:
        torch.set_num_threads(config.engine.threads)
    rounds = config.federation.rounds
    plan = plan_of(config, {})

    def start() -> dict[str, torch.Tensor]:
        # Names and shapes alone count, so neither weights nor the device of the study are needed.
        light = dataclasses.replace(config.model, device="cpu", dtype="fp32", quantize="none")
        lora, shape = config.lora, load_shape(light, weights=False)
        model = BranchedModel(
            shape, rank=lora.rank, alpha=lora.alpha, target_modules=lora.target_modules
        )
        return initial_shared(model, METHODS[plan.settings.method], config.seed)

    state = load_or_init_state(out, plan, rounds, start)
    save_config(config, out / "config.toml")
    plan = dataclasses.replace(plan, run_id=_run_id(out))
    sites = Sites(grid, progress.log, plan.run_id)
    least, seconds = config.federation.min_updates, config.engine.join_seconds
    nodes = _wait(sites, config.engine.sites or least, seconds)
    if rewriting and state.round < rounds:
        _rewrite(grid, nodes, plan.run_id, config.engine.rewrite_seconds, progress)
    known = {*state.accepted, *nodes}
    while state.round < rounds:
        nodes = _wait(sites, least, seconds)
        known |= nodes.keys()
        plan = dataclasses.replace(
            plan, clients=tuple(sorted(known)), announced=dict(sites.announced)
        )
        run_clients = over_grid(grid, nodes, config.engine.round_seconds)
        state = next_round(out, state, plan, run_clients, progress)
    return state


def _run_id(out: Path) -> str:
    """Return what tells this run from others of its name, made once."""
    path = out / RUN_ID
    if not path.exists():
        write_atomically(path, secrets.token_hex(8))
    return path.read_text(encoding="utf-8")


def _wait(sites: Sites, wanted: int, seconds: float) -> dict[str, int]:
    """Return client -> node once as many as are wanted have joined, and the others that are
    connected have had a while to say who they are. UserError when too few come."""
    began = time.monotonic()
    nodes = sites.look(again=True)
    while len(nodes) < wanted or sites.silent:
        if len(nodes) < wanted and time.monotonic() - began > seconds:
            raise UserError(
                f"{len(nodes)} of {wanted} sites joined in {seconds:g} s "
                f"({', '.join(sorted(nodes)) or 'none'}); start the others, or change engine.sites "
                "(before round 1), federation.min_updates or engine.join_seconds"
            )
        time.sleep(POLL_SECONDS)
        nodes = sites.look()
    return nodes


def _rewrite(
    grid: Grid, nodes: Mapping[str, int], run_id: str, seconds: float, progress: Progress
) -> None:
    """Have every site rewrite its training answers. A late one does it in its first round."""
    messages = {
        name: Message(of_run(run_id), node, "train.rewrite", ttl=seconds)
        for name, node in nodes.items()
    }
    for name, reply in replies(grid, messages, seconds):
        said = told(reply)
        counts = f"{said['rewritten']} of {said['answers']} answers " if "answers" in said else ""
        progress.log(f"  {name}: {said.get('fault') or f'{counts}rewritten'}")
