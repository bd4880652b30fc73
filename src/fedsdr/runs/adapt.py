"""Adapt a finished run to a client that took no part: a private branch beside the frozen R.

S alone is trained on the client's own rows, once beside R and once, as the control, on the bare
base: from the same start, on the same rows in the same order. Nobody else is needed, and the run is
not changed.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fedsdr.config import Config
from fedsdr.data.clients import load_one_client
from fedsdr.errors import UserError
from fedsdr.evaluation.intervals import ratio_interval
from fedsdr.evaluation.results import Table, interval_text, model_entry
from fedsdr.models.adapters import save_adapter
from fedsdr.models.two_branch import BranchedModel
from fedsdr.progress import Advance, Progress
from fedsdr.runs.client_runtime import ClientRuntime, check_rows, evaluate_model
from fedsdr.runs.run_folder import open_run, read_run
from fedsdr.runs.run_plan import client_settings
from fedsdr.seeds import seed_for
from fedsdr.training.methods import METHODS
from fedsdr.training.optimizer_step import phase_steps, run_alone
from fedsdr.types import Branch, ClientData, R, S

BESIDE, BARE = "beside R", "on the bare base"
FORWARDS: dict[str, tuple[Branch, ...]] = {BESIDE: (R, S), BARE: (S,)}
Losses = list[tuple[float, int]]  # per test row: nats, tokens


def adapt_run(
    run: Path,
    data: str,
    out: Path,
    progress: Progress,
    *,
    client_id: str = "",
    epochs: int = 0,
    points: int = 8,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Train the two branches on the file or set `data` and return the content of adapt.json.

    `epochs` (0: train.local_epochs of the run) passes over the training rows; the loss on the test
    rows is measured before and about `points` times on the way. The branch beside R goes to
    OUT/adapter. UserError before anything slow for what the user can fix.
    """
    if out.exists():
        raise UserError(f"{out}: exists already; choose another --out")
    config, _ = read_run(run, overrides)
    client = _load_client(run, config, data, client_id)
    name = client.client_id
    runtime, state = open_run(run, overrides)
    for kind, rows in (("training", client.raw), ("test", client.test)):
        check_rows(runtime.limits, name, kind, runtime.encode(rows))
    if name in state.accepted:
        progress.log(f"'{name}' took part in {run}: R may know its rows")
    runtime.model.set(state.shared)
    epochs = epochs or config.train.local_epochs
    curves: dict[str, dict[int, Losses]] = {}
    models: dict[str, Any] = {}
    for title, forward in FORWARDS.items():
        runtime.model.set(runtime.model.initial(S, seed_for(config.seed, "start", name)))
        before = _scores(runtime, client, forward)
        with progress.bar(f"S {title}, rows", epochs * len(client.raw)) as advance:
            curves[title] = _train(runtime, client, forward, epochs, points, advance)
        models[title] = {"before": before, "after": _scores(runtime, client, forward)}
        if title == BESIDE:
            trained = runtime.model.get(S)
    lora, base = config.lora, runtime.base.name
    save_adapter(out / "adapter", trained, (S,), lora=lora, base_name=base)
    return {
        "client": name,
        "method": config.method.name,
        "rounds": state.round,
        "epochs": epochs,
        "rows": {"training": len(client.raw), "test": len(client.test)},
        "curve": _curve(curves, seed_for(config.seed, "adapt", name)),
        "models": models,
    }


def adapt_tables(found: dict[str, Any]) -> list[Table]:
    """Return the learning curve and the scores as tables."""
    rows = found["rows"]
    counts = f"{rows['training']} training and {rows['test']} test rows, {found['epochs']} epochs"
    curve = [["rows seen", *(f"loss, S {title} ↓" for title in FORWARDS), "difference"]]
    for point in found["curve"]:
        cells = (point[key] for key in (*FORWARDS, "difference"))
        texts = [f"{cell['value']:.3f}{interval_text(cell['interval'])}" for cell in cells]
        curve.append([str(point["rows_seen"]), *texts])
    scores = [["S", "score before ↑", "score after ↑"]]
    for title, of in found["models"].items():
        entries = (of["before"], of["after"])
        texts = [f"{e['score']:.3f}{interval_text(e['score_ci'])}" for e in entries]
        scores.append([title, *texts])
    title = f"A private branch for '{found['client']}': {counts}"
    return [
        (f"{title}; loss in nats per token [95 % interval over test rows]", curve),
        ("Score [95 % interval over test rows]", scores),
    ]


def _load_client(run: Path, config: Config, data: str, client_id: str) -> ClientData:
    """Return the client's data, split as the data of the run."""
    if METHODS[config.method.name].sent != (R,):
        raise UserError(f"{run}: '{config.method.name}' has no shared R to put a private S beside")
    own = dataclasses.replace(config.data, include=[], leave_out=[], validation_fraction=0.0)
    client = load_one_client(own, data, client_id or Path(data).stem)
    if not client.test:
        raise UserError(f"{data}: no test row is left to measure on; give more rows")
    return client


def _train(
    runtime: ClientRuntime,
    client: ClientData,
    forward: tuple[Branch, ...],
    epochs: int,
    points: int,
    advance: Advance,
) -> dict[int, Losses]:
    """Train S; return the losses of the test rows by rows seen, at the start and at each point."""
    model, settings = runtime.model, client_settings(runtime.config)
    settings = dataclasses.replace(settings, pack_tokens=runtime.config.train.pack_tokens)
    total, seen = epochs * len(client.raw), 0

    def after_step(rows: int, tokens: int) -> None:
        nonlocal seen
        seen += rows
        advance(rows, tokens)
        if seen * points // total > (seen - rows) * points // total:
            with _without_dropout(model):
                found[seen] = runtime.losses(client.test)

    seed = seed_for(runtime.config.seed, "adapt", client.client_id)
    torch.manual_seed(seed_for(seed, "dropout"))
    with model.using(*forward, trained=S, dropout=settings.lora_dropout):
        with _without_dropout(model):
            found: dict[int, Losses] = {0: runtime.losses(client.test)}
        training = phase_steps(
            model.parameters(S),
            runtime.encode(client.raw),
            settings,
            epochs=epochs,
            seed=seed,
            after_step=after_step,
        )
        result = run_alone(training, model.model)
    if not math.isfinite(result.loss):
        raise UserError(f"client '{client.client_id}': S diverged; lower --epochs")
    return found


def _curve(curves: dict[str, dict[int, Losses]], seed: int) -> list[dict[str, Any]]:
    """Return, by rows seen, both losses and their paired difference, with intervals over rows."""
    found = []
    for seen, beside in curves[BESIDE].items():
        bare = curves[BARE][seen]
        difference = [(a - b, n) for (a, n), (b, _) in zip(beside, bare, strict=True)]
        lines = {BESIDE: beside, BARE: bare, "difference": difference}
        found.append(
            {"rows_seen": seen} | {name: _mean_loss(of, seed) for name, of in lines.items()}
        )
    return found


def _mean_loss(losses: Sequence[tuple[float, int]], seed: int) -> dict[str, Any]:
    counted = [(of, float(tokens)) for of, tokens in losses if tokens]
    value = math.fsum(of for of, _ in counted) / math.fsum(tokens for _, tokens in counted)
    return {"value": value, "interval": ratio_interval(counted, seed)}


def _scores(
    runtime: ClientRuntime, client: ClientData, forward: tuple[Branch, ...]
) -> dict[str, Any]:
    scores = evaluate_model(runtime, [client], forward)[client.client_id]
    binary = all(row.score in (0, 1) for row in scores.rows)
    return model_entry(scores, seed_for(runtime.config.seed, "score_ci"), binary=binary)


@contextmanager
def _without_dropout(model: BranchedModel) -> Iterator[None]:
    """Switch dropout off. (`using` inside `using` would take the gradients away.)"""
    before, model.switch.dropout = model.switch.dropout, 0.0
    try:
        yield
    finally:
        model.switch.dropout = before
