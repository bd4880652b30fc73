"""What a comparison will take on this device, from a small run of every kind of cell."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedsdr.config import Config
from fedsdr.data.clients import load_clients
from fedsdr.models.memory import choose_pack
from fedsdr.progress import Progress
from fedsdr.research.compare.compare_runs import finished
from fedsdr.research.compare.differences import Group, training_part
from fedsdr.research.compare.grid import Cell
from fedsdr.runs.client_runtime import Site
from fedsdr.runs.run import run_experiment
from fedsdr.runs.shared_base import one_base
from fedsdr.training.methods import METHODS
from fedsdr.types import ClientData

ROWS = 4  # training rows of the small run


@dataclass(frozen=True)
class Estimate:
    """Of one run. Making the rewrites stands apart: cells of one `source` share them."""

    runs: int  # that are still to be done
    train_tokens: float
    rewrite_tokens: float
    seconds: float  # of training and evaluating
    rewrite_seconds: float
    bytes_up: float
    bytes_down: float
    memory: int | None  # bytes at the peak of a step; None where it cannot be followed
    source: str


def estimates_of(cells: Sequence[Cell], out: Path, progress: Progress) -> dict[Group, Estimate]:
    """Return what one run of each group will take; nothing is written to `out`.

    One client runs for one round on a few rows, in a temporary folder with a cache of its own.
    Training is scaled by the tokens of the raw rows, rewriting and evaluating by the number of
    rows, bytes by clients and rounds. A small run has small batches, so that real seconds are
    likelier fewer; loading is not in them. Memory is `models.memory`'s estimate of a full pack.
    """
    found: dict[Group, Estimate] = {}
    counted = {cell.name for cell in cells if finished(cell, out)}
    open_once = one_base()
    for group in dict.fromkeys(cell.group for cell in cells):
        own = {cell.name: cell for cell in cells if cell.group == group}
        first = next(iter(own.values()))
        config, clients = first.config, load_clients(first.config.data)
        progress.log(f"a small run of {first}")
        with tempfile.TemporaryDirectory() as folder:
            small = _small(config, clients, Path(folder))
            results = run_experiment(small, Path(folder) / "run", progress, open_site=open_once)
            tried = load_clients(small.data)
            site = open_once(small, Path(folder))
        _, memory = choose_pack(site.config)  # at the size that the site has chosen
        cost, seconds = results["cost"], results["cost"]["seconds"]

        taking_part = min(config.federation.clients_per_round or len(clients), len(clients))
        rounds = config.federation.rounds / small.federation.rounds
        times = _times(config, taking_part / len(clients), small.federation.rounds)
        train = _tokens(site, clients) / _tokens(site, tried)
        rewrite = sum(len(c.raw) for c in clients) / sum(len(c.raw) for c in tried)
        evaluate = sum(len(c.test) for c in clients) / sum(len(c.test) for c in tried)
        found[group] = Estimate(
            runs=len(own.keys() - counted),
            train_tokens=train * training_part(_scaled(cost["tokens"], times)),
            rewrite_tokens=cost["tokens"].get("rewrite", 0) * rewrite,
            seconds=train * training_part(_scaled(seconds, times)) + seconds["evaluate"] * evaluate,
            rewrite_seconds=seconds.get("rewrite, this run", 0.0) * rewrite,
            bytes_up=cost["bytes_up"] * taking_part * rounds,
            bytes_down=cost["bytes_down"] * taking_part * rounds,
            memory=None if memory is None else memory.total,
            source=repr((config.model, config.data, config.teacher)),
        )
        counted |= own.keys()
    return found


def rewriting_seconds(estimates: Iterable[Estimate]) -> float:
    """Return the seconds of making every set of rewrites once: the most that a run to be done takes
    for it, since others of its source do not rewrite, or find it made."""
    most: dict[str, float] = {}
    for one in estimates:
        if one.runs:
            most[one.source] = max(most.get(one.source, 0.0), one.rewrite_seconds)
    return sum(most.values())


def _times(config: Config, share: float, rounds: int) -> dict[str, float]:
    """Return by what the cost of each phase in `rounds` rounds of one client grows to that of a
    client of the whole run, in a `share` of whose rounds it takes part."""
    method, taken = METHODS[config.method.name], config.federation.rounds * share
    found = {}
    for phase in method.phases:
        skipped = int(phase.returning)  # a client's first round, which the small run has as well
        if rounds > skipped:
            found[f"train {phase.name}"] = max(0.0, taken - skipped) / (rounds - skipped)
    # What comes after the last round, every client does, for as many epochs as there were rounds.
    later = config.federation.rounds / rounds
    return found | {f"train {phase.name}": later for phase in method.afterwards}


def _scaled(cost: Mapping[str, float], times: Mapping[str, float]) -> dict[str, float]:
    return {name: value * times[name] for name, value in cost.items() if name in times}


def _tokens(site: Site, clients: Sequence[ClientData]) -> int:
    return sum(len(row.tokens) for client in clients for row in site.encode(client.raw))


def _small(config: Config, clients: Sequence[ClientData], folder: Path) -> Config:
    """Return `config` for one client with test rows, one round (two where a phase waits for the
    second) and a few rows."""
    tested = [client for client in clients if client.test]
    largest = max(tested or clients, key=lambda client: len(client.raw))
    waits = any(phase.returning for phase in METHODS[config.method.name].phases)
    data, federation = config.data, config.federation
    return replace(
        config,
        data=replace(data, include=[largest.client_id], max_examples=ROWS, max_test_examples=1),
        federation=replace(
            federation,
            rounds=min(federation.rounds, 2 if waits else 1),
            clients_per_round=0,
            min_updates=1,
        ),
        teacher=replace(config.teacher, cache=str(folder / "cache")),
    )
