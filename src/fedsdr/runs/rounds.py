"""The rounds of a run in its folder, whichever engine runs the clients.

FOLDER/checkpoint/      the state after the last whole round
FOLDER/rounds.jsonl     one line a round
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedsdr.errors import UserError
from fedsdr.federation.checkpoint import load_state, save_state
from fedsdr.federation.round import Plan, RunClients, first_state, run_round
from fedsdr.files import disk_errors_named, write_atomically
from fedsdr.models.two_branch import BranchedModel
from fedsdr.progress import Progress
from fedsdr.seeds import seed_for
from fedsdr.tensors import Tensors
from fedsdr.training.methods import Method
from fedsdr.types import RoundRecord, ServerState


def initial_shared(model: BranchedModel, method: Method, seed: int) -> Tensors:
    """Return the shared tensors before round 1; of `model` only names and shapes count."""
    return {
        name: value
        for branch in method.sent
        for name, value in model.initial(branch, seed_for(seed, "start")).items()
    }


def load_or_init_state(
    folder: Path, plan: Plan, rounds: int, start: Callable[[], Tensors]
) -> ServerState:
    """Return the state after the last whole round of the folder; of a new run, that of `start`.

    UserError when `rounds` asks for less than is done, or for more of a run whose phases after the
    last round are done.
    """
    state = load_state(folder / "checkpoint") or first_state(start(), plan)
    if state.round > rounds:
        raise UserError(
            f"{folder}: {state.round} rounds are done and are not taken back; raise "
            f"federation.rounds = {rounds} or choose another --out"
        )
    last = max([state.round, *state.accepted.values()])
    _keep_records(folder / "rounds.jsonl", last)
    if state.round < min(rounds, last):
        raise UserError(
            f"{folder}: what comes after the last round was trained after {state.round}; "
            f"more rounds need another --out, or go back to federation.rounds = {state.round}"
        )
    return state


def next_round(
    folder: Path, state: ServerState, plan: Plan, run_clients: RunClients, progress: Progress
) -> ServerState:
    """Run one round and keep it in the folder; return the state after it."""
    state, record = run_round(state, plan, run_clients)
    keep(folder, state, record, progress)
    return state


def keep(folder: Path, state: ServerState, record: RoundRecord, progress: Progress) -> None:
    """Write the record of a round, then the state after it; say so."""
    _append_record(folder / "rounds.jsonl", record)
    save_state(folder / "checkpoint", state)
    progress.log(round_line(dataclasses.asdict(record)))


def _append_record(path: Path, record: RoundRecord) -> None:
    with disk_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(record)) + "\n")


def _keep_records(path: Path, rounds: int) -> None:
    """Drop the lines of rounds that the checkpoint does not have, and a torn last line."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()[:rounds]
        write_atomically(path, "".join(line + "\n" for line in lines))


def round_line(record: Mapping[str, Any]) -> str:
    """Return a line of rounds.jsonl in words."""
    parts: dict[str, list[float]] = {}
    for client in record["clients"]:
        for key, value in client.items():
            if key.endswith(".loss") and isinstance(value, float):
                parts.setdefault(key.removesuffix(".loss"), []).append(value)
    told = [f"round {record['round']}: {len(record['clients'])} updates"]
    told += [f"{len(record['refused'])} refused"] if record["refused"] else []
    told += [f"loss {name} {sum(v) / len(v):.3f}" for name, v in parts.items()]
    told += [f"step {record['step_norm']:.3f}", f"{record['bytes_up'] / 1e6:.1f} MB up"]
    told += [f"epsilon {record['epsilon']:.3g}"] if record["epsilon"] is not None else []
    return ", ".join([*told, f"{record['seconds']:.0f} s"])
