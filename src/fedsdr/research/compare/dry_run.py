"""What a comparison will cost on this device, from a small run of each kind of cell."""

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsdr.config import Config, nested, value_of, with_values
from fedsdr.data.clients import load_clients, taking_part
from fedsdr.evaluation.results import Table
from fedsdr.models.memory import choose_pack
from fedsdr.progress import Progress
from fedsdr.research.compare.compare_runs import finished
from fedsdr.research.compare.differences import FORWARD_SHARE, Group
from fedsdr.research.compare.grid import Cell
from fedsdr.runs.client_runtime import ClientRuntime
from fedsdr.runs.evaluation import base_scores
from fedsdr.runs.run import run_experiment
from fedsdr.runs.shared_base import one_base
from fedsdr.training.methods import METHODS
from fedsdr.training.optimizer_step import accumulate_gradients
from fedsdr.types import ClientData, R

ROWS, TEST_ROWS = 4, 8  # training and test rows of the small run
# Keys on which neither the work of a run nor its speed depends: one small run serves all values.
FREE = ("seed", "data.seed", "train.lr", "train.anchor_beta", "train.mask_perplexity")


@dataclass(frozen=True)
class Estimate:
    """The cost of one run. What several runs share is counted apart, in `shared`."""

    runs: int  # still to be done
    train_tokens: float
    rewrite_tokens: float
    seconds: float  # training, and evaluation of the trained models
    shared: Mapping[str, float]  # what is rewritten, and where the base is evaluated -> seconds
    bytes_up: float
    bytes_down: float
    memory: int | None  # peak bytes of a training step; None where it cannot be estimated


def estimates_of(cells: Sequence[Cell], out: Path, progress: Progress) -> dict[Group, Estimate]:
    """Return the cost of one run of each group; nothing is written to `out`.

    One client runs one round on a few rows, in a temporary folder with its own cache, after an
    untimed step that warms the model up. Training is scaled by the tokens of the raw rows,
    rewriting and evaluation by the number of rows, bytes by clients and rounds. Small batches are
    slow, so the full run is likely to take fewer seconds; loading, retention and transfer are not
    counted. Memory is that of a full pack (`models.memory`). Groups that differ in `FREE` keys or
    in what is measured share a small run.
    """
    found: dict[Group, Estimate] = {}
    ran: dict[str, tuple[ClientRuntime, Mapping[str, Any], float]] = {}
    counted = {cell.name for cell in cells if finished(cell, out)}
    open_once = one_base()
    with tempfile.TemporaryDirectory() as folder:
        for number, group in enumerate(dict.fromkeys(cell.group for cell in cells)):
            own = {cell.name: cell for cell in cells if cell.group == group}
            config = next(iter(own.values())).config
            clients = taking_part(load_clients(config.data), config.data)
            small, run = _small(config, clients, Path(folder)), Path(folder) / f"run-{number}"
            if repr(small) not in ran:
                progress.log(f"a small run of {group}")
                runtime = open_once(small, run, 1)
                base_seconds = _warm_up(runtime)
                cost = run_experiment(small, run, progress, open_runtime=open_once)["cost"]
                ran[repr(small)] = runtime, cost, base_seconds
            own_runs = len(own.keys() - counted)
            found[group] = _scaled(*ran[repr(small)], config, clients, own_runs)
            counted |= own.keys()
    return found


def _warm_up(runtime: ClientRuntime) -> float:
    """Take a training step, score the base, and return the seconds of the latter."""
    (client,) = load_clients(runtime.config.data)
    model, pack_tokens = runtime.model, runtime.config.train.pack_tokens
    with model.using(R, trained=R):
        parameters = model.parameters(R).values()
        accumulate_gradients(model.model, parameters, runtime.encode(client.raw), pack_tokens)
    began = time.perf_counter()
    if client.test:
        base_scores(runtime, [client])
    return time.perf_counter() - began


def _scaled(
    runtime: ClientRuntime,
    cost: Mapping[str, Any],
    base_seconds: float,
    config: Config,
    clients: Sequence[ClientData],
    runs: int,
) -> Estimate:
    """Return the estimate for `config` from the costs of the small run of `runtime`."""
    small = runtime.config
    raw, small_raw = (
        [row for client in of for row in client.raw] for of in (clients, load_clients(small.data))
    )
    tokens, small_tokens = (
        sum(len(row.tokens) for row in runtime.encode(rows)) for rows in (raw, small_raw)
    )
    train, rewrite = tokens / small_tokens, len(raw) / len(small_raw)
    tested = sum(len(client.test) for client in load_clients(small.data))
    evaluations = sum(len(client.test) for client in clients) / max(1, tested)
    in_a_round = min(config.federation.clients_per_round or len(clients), len(clients))
    sent = in_a_round * config.federation.rounds / small.federation.rounds
    times = _scale_of_phases(config, in_a_round / len(clients), small.federation.rounds)
    trained = {
        kind: train * math.fsum(cost[kind].get(phase, 0) * n for phase, n in times.items())
        for kind in ("tokens", "seconds")
    }
    _, memory = choose_pack(small, len(clients))
    return Estimate(
        runs=runs,
        train_tokens=trained["tokens"],
        rewrite_tokens=cost["tokens"].get("rewrite", 0) * rewrite,
        seconds=trained["seconds"]
        + cost["seconds"]["evaluate"] * evaluations * _times_measured(config),
        shared={
            repr((config.model, config.data, config.teacher)): (
                cost["seconds"].get("rewrite", 0.0) * rewrite
            ),
            repr((config.model, config.data, config.evaluation)): base_seconds * evaluations,
        },
        bytes_up=cost["bytes_up"] * sent,
        bytes_down=cost["bytes_down"] * sent,
        memory=None if memory is None else memory.total,
    )


def estimate_table(estimates: Mapping[Group, Estimate]) -> tuple[Table, str]:
    """Return the cost of one run of each group, and a line about all runs still to be done."""
    columns = ["train tokens", "rewrite tokens", "seconds", "MB up", "MB down", "GiB memory"]
    rows = [["run", "runs to do", *columns]]
    for group, one in estimates.items():
        numbers = (one.train_tokens, one.rewrite_tokens, one.seconds)
        sent = (one.bytes_up / 1e6, one.bytes_down / 1e6)
        memory = "unknown" if one.memory is None else f"{one.memory / 2**30:,.2f}"
        texts = [*(f"{n:,.0f}" for n in numbers), *(f"{n:,.2f}" for n in sent), memory]
        rows.append([str(group), str(one.runs), *texts])
    runs, shared = sum(one.runs for one in estimates.values()), shared_seconds(estimates)
    seconds = sum(one.runs * one.seconds for one in estimates.values()) + shared
    total = (
        f"{runs} runs to do, about {seconds:,.0f} s in all, "
        f"{shared:,.0f} of them for what is done once: rewriting, and scoring the base"
    )
    return ("Estimated cost of one run, from a small run of each kind", rows), total


def shared_seconds(estimates: Mapping[Group, Estimate]) -> float:
    """Return the seconds of what runs share; the largest estimate of each counts."""
    most: dict[str, float] = {}
    for one in estimates.values():
        for work, seconds in one.shared.items() if one.runs else ():
            most[work] = max(most.get(work, 0.0), seconds)
    return sum(most.values())


def _scale_of_phases(config: Config, share: float, rounds: int) -> dict[str, float]:
    """Return, per phase, the factor that scales one client's cost in the small run to the full run.

    `share`: of the rounds that a client takes part in; `rounds`: of the small run.
    """
    method, taken = METHODS[config.method.name], config.federation.rounds * share
    found = {}
    for phase in method.phases:
        skipped = int(phase.returning)  # such a phase is left out in a client's first round
        if rounds > skipped:
            found[f"train {phase.name}"] = max(0.0, taken - skipped) / (rounds - skipped)
        times = 1.0 if phase.reads_base else taken / rounds
        found[f"forward {phase.name}"] = FORWARD_SHARE * times
    # Phases after the last round run at every client, for as many epochs as there were rounds.
    later = config.federation.rounds / rounds
    return found | {f"train {phase.name}": later for phase in method.afterwards}


def _times_measured(config: Config) -> int:
    """Return how often the models of a run answer the test rows: at the end, and by round."""
    asked, rounds = config.evaluation, config.federation.rounds
    if not asked.every or asked.by_round != "all" or config.data.validation_fraction:
        return 1
    return 1 + math.ceil(rounds / asked.every)


def _small(config: Config, clients: Sequence[ClientData], folder: Path) -> Config:
    """Return `config` for a few rows of one client with test rows, and one round.

    Two rounds if a phase is left out in the first.
    """
    tested = [client for client in clients if client.test]
    largest = max(tested or clients, key=lambda client: len(client.raw))
    waits = any(phase.returning for phase in METHODS[config.method.name].phases)
    values = {
        "data.include": [largest.client_id],
        "data.leave_out": [],
        "data.max_examples": ROWS,
        "data.max_test_examples": TEST_ROWS,
        "evaluation.every": 0,
        "evaluation.keep": "last",
        "evaluation.retention": False,
        "evaluation.transfer": False,
        "federation.rounds": min(config.federation.rounds, 2 if waits else 1),
        "federation.clients_per_round": 0,
        "federation.min_updates": 1,
        "teacher.cache": str(folder / "cache"),
        **{key: value_of(Config(), key) for key in FREE},
    }
    for key, value in values.items():
        config = with_values(config, nested(key, value), "--dry-run", folder)
    return config
