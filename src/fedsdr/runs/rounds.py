"""The rounds of a run in its folder, whichever engine runs the clients.

FOLDER/checkpoint/      the state after the last complete round
FOLDER/rounds.jsonl     one line a round
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedsdr.config import Config
from fedsdr.errors import UserError
from fedsdr.federation.checkpoint import (
    FIX,
    last_line,
    load_progress,
    load_state,
    records_mark,
    save_state,
)
from fedsdr.federation.plan import Plan, first_state
from fedsdr.federation.round import RunClients, run_round
from fedsdr.federation.round_records import (
    RECORDS,
    append_record,
    check_digest,
    parse_records,
    record_lines,
)
from fedsdr.file_reading import stands
from fedsdr.files import write_atomically
from fedsdr.models.base_model import load_shape
from fedsdr.models.two_branch import BranchedModel, with_branches
from fedsdr.progress import Progress
from fedsdr.runs.run_folder import run_name
from fedsdr.seeds import seed_for
from fedsdr.tensors import Tensors
from fedsdr.training.methods import METHODS, Method
from fedsdr.types import RoundRecord, ServerState


def initial_shared(model: BranchedModel, method: Method, seed: int) -> Tensors:
    """Return the shared tensors before round 1, from the names and shapes of `model` alone."""
    return {
        name: value
        for branch in method.sent
        for name, value in model.initial(branch, seed_for(seed, "start")).items()
    }


def initial_tensors(config: Config) -> Tensors:
    """Return the shared tensors before round 1 of a configuration.

    Only names and shapes of the model matter, so the study's device, dtype and weights are not
    needed.
    """
    light = dataclasses.replace(config.model, device="cpu", dtype="fp32", quantize="none")
    model = with_branches(load_shape(light, weights=False), config.lora)
    return initial_shared(model, METHODS[config.method.name], config.seed)


def load_or_init_state(
    folder: Path, plan: Plan, rounds: int, initial: Callable[[], Tensors]
) -> ServerState:
    """Return the state after the last complete round, or the state before round 1 of a new run.

    UserError when the folder is damaged, when more than `rounds` rounds are done, or when more
    rounds are asked of a run whose phases after the last round are done.
    """
    state = load_state(folder / "checkpoint") or first_state(initial(), plan)
    if state.round > rounds:
        raise UserError(
            f"{folder}: {state.round} rounds are done; raise federation.rounds = {rounds} or "
            "choose another --out"
        )
    last = last_line(state.round, state.accepted)
    _drop_records_after(folder, last)
    if state.round < min(rounds, last):
        raise UserError(
            f"{folder}: the phases after the last round were trained after round {state.round}; "
            f"set federation.rounds = {state.round}, or choose another --out for more rounds"
        )
    return state


def rounds_done(folder: Path, state: ServerState) -> int:
    """Return the number of finished rounds; `state`, which is served, may be of an earlier one."""
    return load_progress(folder / "checkpoint")[0] or state.round


def next_round(
    folder: Path,
    state: ServerState,
    plan: Plan,
    run_clients: RunClients,
    progress: Progress,
    measure: Callable[[ServerState], dict[str, Any] | None] = lambda state: None,
) -> ServerState:
    """Run one round and save it in the folder; return the state after it.

    What `measure` finds of that state is part of its line in rounds.jsonl.
    """
    state, record = run_round(state, plan, run_clients)
    record = dataclasses.replace(record, evaluation=measure(state))
    save_round(folder, state, record, progress)
    return state


def save_round(folder: Path, state: ServerState, record: RoundRecord, progress: Progress) -> None:
    """Append the record of a round, then write the checkpoint and log a line."""
    chain = append_record(folder, record)
    save_state(folder / "checkpoint", state, chain=chain, run=run_name(folder))
    progress.log(round_line(dataclasses.asdict(record)))
    progress.round_done(dataclasses.asdict(record))


def _drop_records_after(folder: Path, count: int) -> None:
    """Keep the first `count` lines: a killed round leaves one line without a checkpoint.

    UserError where there is more without one: a lost checkpoint must not start the run anew.
    """
    path = folder / RECORDS
    lines = record_lines(folder) if count or stands(path) else []
    if len(lines) > count + 1 or (not count and stands(folder / "results.json")):
        done = f"ends at round {count}" if count else "missing"
        raise UserError(f"{folder / 'checkpoint'}: {done}, though {len(lines)} are done; {FIX}")
    if not count:
        path.unlink(missing_ok=True)
        return
    lines = lines[:count]
    mark = records_mark(folder / "checkpoint", check=False)  # `load_state` has hashed its files
    check_digest(folder, parse_records(lines, path), mark)
    write_atomically(path, "".join(line + "\n" for line in lines))


def round_line(record: Mapping[str, Any]) -> str:
    """Return a line of rounds.jsonl as a sentence for the log."""
    losses: dict[str, list[float]] = {}
    for client in record["clients"]:
        for key, value in client.items():
            if key.endswith(".loss") and isinstance(value, float):
                losses.setdefault(key.removesuffix(".loss"), []).append(value)
    parts = [f"round {record['round']}: {len(record['clients'])} updates"]
    parts += [f"{len(record['refused'])} refused"] if record["refused"] else []
    parts += [f"loss {name} {sum(v) / len(v):.3f}" for name, v in losses.items()]
    parts += [f"{len(record['left_out'])} left out"] if record["left_out"] else []
    parts += [f"{name.replace('_', ' ')} {x:.1%}" for name, x in record["aggregation"].items()]
    if found := record.get("evaluation"):
        means = (f"{kind} {found['mean'][kind]['loss']:.3f}" for kind in ("global", "client"))
        parts += [f"{found['of']} loss {', '.join(means)}"]
    parts += [f"step {record['step_norm']:.3f}", f"{record['bytes_up'] / 1e6:.1f} MB up"]
    parts += [f"epsilon {record['epsilon']:.3g}"] if record["epsilon"] is not None else []
    return ", ".join([*parts, f"{record['seconds']:.0f} s"])
