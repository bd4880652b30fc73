"""A whole run in one process: rewrite, run the rounds, evaluate. It can be resumed any time."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from fedsdr.config import Config
from fedsdr.data.clients import load_clients, taking_part
from fedsdr.evaluation.results_file import write_results
from fedsdr.federation.plan import Plan
from fedsdr.files import alone
from fedsdr.models.adapters import save_adapter
from fedsdr.progress import Advance, Progress
from fedsdr.runs.client_runtime import ClientRuntime, open_runtime, train_at
from fedsdr.runs.clients_at_once import task_groups, train_group
from fedsdr.runs.config_schema import check_names
from fedsdr.runs.evaluation import evaluate_clients
from fedsdr.runs.in_process import in_process
from fedsdr.runs.refresh import refresh_rewrites
from fedsdr.runs.rewriting import distill_clients, has_rewrites
from fedsdr.runs.round_measures import round_measures
from fedsdr.runs.rounds import initial_shared, load_or_init_state, next_round, save_round
from fedsdr.runs.row_checks import check_clients
from fedsdr.runs.run_folder import (
    NOTHING_TO_DO,
    check_data,
    checked_config,
    finished_run,
    served_state,
    start_folder,
)
from fedsdr.runs.run_plan import announced_by, plan_of
from fedsdr.runs.run_status import noted_in
from fedsdr.runs.teacher_setup import prepare_rewriting
from fedsdr.runs.trackers import check_trackers, tracked
from fedsdr.seeds import seed_for
from fedsdr.training.local_training import rows_to_train
from fedsdr.types import (
    ClientData,
    ClientFault,
    ClientTask,
    ClientUpdate,
    RoundRecord,
    ServerState,
)

# Runs the remaining rounds, with a checkpoint after each.
RunRounds = Callable[[ClientRuntime, Sequence[ClientData], Plan, Progress], ServerState]


def run_experiment(
    config: Config,
    out: Path,
    progress: Progress,
    *,
    resume: bool = False,
    open_runtime: Callable[[Config, Path, int], ClientRuntime] = open_runtime,
    rounds: RunRounds | None = None,
) -> dict[str, Any]:
    """Run a configuration into the folder `out` and return what results.json holds.

    With `resume`, continue after the last complete round, or start where there is no run yet; the
    result has the same bytes as that of an uninterrupted run. `rounds` is another engine's
    replacement for `run_rounds`. Raises UserError for what the user can fix, before `out` is
    touched where that can be known.
    """
    resumed = (out / "config.toml").exists()
    if resume and (results := finished_run(config, out)):
        progress.log(f"{out}: {NOTHING_TO_DO}")
        return results
    config = checked_config(config, out, resume)
    plan_of(config, {})  # names are checked before anything slow happens
    check_names(config)
    check_trackers(config)
    if resume and not resumed:
        progress.log(f"{out}: no run there yet, so this one starts from round 1")
    everyone = load_clients(config.data)
    clients = taking_part(everyone, config.data)
    plan = plan_of(config, announced_by(clients))
    check_data(out, everyone)
    progress.log(
        f"{len(clients)} clients, {sum(len(c.raw) for c in clients)} training rows, "
        f"{sum(len(c.test) for c in everyone)} test rows"
    )
    with progress.bar(f"loading {config.model.name}", 1) as advance:
        runtime = open_runtime(config, out, len(everyone))
        advance(1)
    for note in runtime.notes:
        progress.log(note)
    if not config.train.pack_tokens:
        chosen = runtime.config.train.pack_tokens
        progress.log(f"packs of {chosen:,} tokens, chosen for this machine (train.pack_tokens)")
    check_clients(runtime, everyone, progress.log, rewrites=runtime.method.rewrites)
    rewriting = prepare_rewriting(runtime) if runtime.method.rewrites else None
    with alone(out):
        checked_config(config, out, resume)  # again: another run may have started there meanwhile
        start_folder(runtime, everyone)
    with noted_in(out, progress) as noted, tracked(config, out, noted) as progress:
        if rewriting and not (resumed and has_rewrites(runtime, clients)):
            with alone(out):
                distill_clients(runtime, rewriting, clients, progress)
        rewriting = None  # frees another model
        run = rounds or run_rounds  # locks itself: a simulation's server is another process
        state = run(runtime, clients, plan, progress)
        with alone(out):
            state = personalize(runtime, clients, state, plan, progress)
            return finish(runtime, everyone, state, progress)


def run_rounds(
    runtime: ClientRuntime, clients: Sequence[ClientData], plan: Plan, progress: Progress
) -> ServerState:
    """Run the remaining rounds, with a checkpoint after each and the folder locked."""
    by_id = {client.client_id: client for client in clients}
    rounds = runtime.config.federation.rounds
    seconds: list[float] = []  # of each round here

    def run_clients(tasks: Sequence[ClientTask]) -> Iterator[ClientUpdate | ClientFault]:
        total = sum(rows_to_train(task, len(by_id[task.client_id].raw)) for task in tasks)
        number = tasks[0].round
        ahead = (rounds - number) * fmean(seconds) if seconds else None
        if number == rounds:
            ahead = 0.0
        what = f"round {number} of {rounds}, rows"
        with progress.bar(what, total, ahead, "until evaluation") as advance:

            def train(group: Sequence[ClientTask]) -> list[ClientUpdate | Exception]:
                return _train(runtime, by_id, group, advance, progress.log)

            groups = functools.partial(task_groups, runtime, by_id)
            yield from in_process(train, groups)(tasks)

    measure = round_measures(runtime, clients, rounds, progress)
    with alone(runtime.folder):
        state = load_or_init_state(
            runtime.folder,
            plan,
            rounds,
            lambda: initial_shared(runtime.model, runtime.method, plan.seed),
        )
        for client in state.accepted:  # a damaged S ends the run here, not in its client's round
            runtime.private_of(client, state)
        while state.round < rounds:
            began = time.monotonic()
            state = next_round(runtime.folder, state, plan, run_clients, progress, measure)
            seconds.append(time.monotonic() - began)
    return state


def _train(
    runtime: ClientRuntime,
    by_id: Mapping[str, ClientData],
    group: Sequence[ClientTask],
    advance: Advance,
    log: Callable[[str], None],
) -> list[ClientUpdate | Exception]:
    """Return the update or the fault of each client of a group, with new rewrites where due."""
    found: dict[str, ClientUpdate | Exception] = {}
    for task in group:
        client = by_id[task.client_id]
        try:
            refresh_rewrites(runtime, client, task, log)
            if len(group) == 1:
                found[task.client_id] = train_at(runtime, client, task, advance)
        except Exception as error:  # of this client; the round goes on
            found[task.client_id] = error
    ready = [task for task in group if task.client_id not in found]
    together = train_group(runtime, by_id, ready, advance) if ready else []
    found |= {task.client_id: one for task, one in zip(ready, together, strict=True)}
    return [found[task.client_id] for task in group]


def personalize(
    runtime: ClientRuntime,
    clients: Sequence[ClientData],
    state: ServerState,
    plan: Plan,
    progress: Progress,
) -> ServerState:
    """Run the phases after the last round, with as many epochs as all rounds together.

    They are one more line of rounds.jsonl, a round in which nothing is sent. UserError when a
    client fails.
    """
    last = state.round + 1
    if not runtime.method.afterwards or all(
        state.accepted.get(c.client_id) == last for c in clients
    ):
        return state
    given = plan.settings
    settings = dataclasses.replace(
        given,
        afterwards=True,
        local_epochs=(given.smooth_epochs or given.local_epochs) * state.round,
        smooth_epochs=0,
        correction="none",
        update_dtype="fp32",
    )
    began, done = time.perf_counter(), []
    starts = plan.starts(state.shared)
    rows = sum(len(client.raw) for client in clients) * settings.local_epochs
    with progress.bar("after the last round, rows", rows, 0.0, "until evaluation") as advance:
        by_id = {client.client_id: client for client in clients}
        seed = seed_for(plan.seed, "client")
        tasks = [
            ClientTask(last, name, seed, starts[name], {}, settings, state.accepted.get(name, 0))
            for name in by_id
        ]
        for group in task_groups(runtime, by_id, tasks):
            for update in _train(runtime, by_id, group, advance, progress.log):
                if isinstance(update, Exception):
                    raise update
                counted = {"id": update.client_id, "num_examples": update.num_examples}
                done.append({**counted, **update.metrics})
    record = RoundRecord(last, tuple(done), (), 0, 0, 0.0, time.perf_counter() - began)
    state = dataclasses.replace(state, accepted={c.client_id: last for c in clients})
    save_round(runtime.folder, state, record, progress)
    return state


def finish(
    runtime: ClientRuntime, clients: Sequence[ClientData], state: ServerState, progress: Progress
) -> dict[str, Any]:
    """Write the global adapter, measure all models, and write results.json."""
    state = served_state(runtime.folder, runtime.config, state)
    branches, lora = runtime.method.global_model, runtime.config.lora
    if branches:
        folder = runtime.folder / "global"
        save_adapter(folder, state.shared, branches, lora=lora, base_name=runtime.base.name)
    for client, last in state.accepted.items():  # a refused update may have left a later S
        if runtime.method.private:
            held = runtime.store(client, last).round_folder(last)
            runtime.store(client).publish(held)
    results = evaluate_clients(runtime, clients, state, progress)
    write_results(runtime.folder, results)
    return results
