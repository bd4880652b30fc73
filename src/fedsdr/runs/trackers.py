"""Experiment trackers, `[log] to`: the numbers of each round, by client and phase, and no text.

A tracker is a context manager over a run folder that yields a function of (round, metrics). Adding
one is one function and its line of `TRACKERS`. Where a tracker keeps things is set its own way
(WANDB_MODE, MLFLOW_TRACKING_URI, TRACKIO_DIR); a resumed run goes on in the same place.
"""

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from fedsdr.config import Config
from fedsdr.errors import choose
from fedsdr.extras import import_extra
from fedsdr.federation.loss_curves import measured_losses, training_losses
from fedsdr.files import write_atomically
from fedsdr.progress import Progress

PROJECT = "fedsdr"  # the name of the project, or experiment, that the runs are part of
RUN_ID = "log_id"  # a file in the run folder: the run at wandb, trackio and mlflow

Write = Callable[[int, Mapping[str, float]], None]


class Tracker(NamedTuple):
    """The module that a tracker needs, and how its writing is opened."""

    module: str
    open: Callable[[Any, Path], AbstractContextManager[Write]]


@contextlib.contextmanager
def _tensorboard(module: Any, folder: Path) -> Iterator[Write]:
    """Event files in RUN/tensorboard."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:

        def write(round: int, metrics: Mapping[str, float]) -> None:
            for name, value in metrics.items():
                writer.add_scalar(name, value, round)
            writer.flush()

        yield write


@contextlib.contextmanager
def _trackio(trackio: Any, folder: Path) -> Iterator[Write]:
    trackio.init(project=PROJECT, name=_name_of(folder), resume="allow")
    try:
        yield lambda round, metrics: trackio.log(dict(metrics), step=round)
    finally:
        trackio.finish()


@contextlib.contextmanager
def _wandb(wandb: Any, folder: Path) -> Iterator[Write]:
    # The console, the machine, the packages and the repository are text: none of it is sent.
    quiet = wandb.Settings(
        console="off", silent=True, disable_git=True, save_code=False,
        x_disable_stats=True, x_disable_meta=True, x_save_requirements=False,
    )  # fmt: skip
    name, number = folder.resolve().name, _id_of(folder)
    with wandb.init(
        project=PROJECT, name=name, id=number, resume="allow", dir=folder, settings=quiet
    ) as run:
        yield lambda round, metrics: run.log(dict(metrics), step=round)


@contextlib.contextmanager
def _mlflow(mlflow: Any, folder: Path) -> Iterator[Write]:
    """A run at MLFLOW_TRACKING_URI, or in RUN/mlflow.db."""
    local = f"sqlite:///{folder.resolve() / 'mlflow.db'}"
    client = mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or local)
    found = client.get_experiment_by_name(PROJECT)
    experiment = found.experiment_id if found else client.create_experiment(PROJECT)
    wanted = f"tags.{RUN_ID} = '{_id_of(folder)}'"
    runs = client.search_runs([experiment], wanted) or [
        client.create_run(experiment, run_name=_name_of(folder), tags={RUN_ID: _id_of(folder)})
    ]
    number = runs[0].info.run_id

    def write(round: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            client.log_metric(number, name, value, step=round)

    status = "FAILED"
    try:
        yield write
        status = "FINISHED"
    finally:
        client.set_terminated(number, status)


TRACKERS = {
    "tensorboard": Tracker("tensorboard", _tensorboard),
    "trackio": Tracker("trackio", _trackio),
    "wandb": Tracker("wandb", _wandb),
    "mlflow": Tracker("mlflow", _mlflow),
}


def check_trackers(config: Config) -> None:
    """UserError for a tracker that does not exist or is not installed."""
    for name in config.log.to:
        choose(name, TRACKERS, "log.to")
        import_extra(TRACKERS[name].module, f"log-{name}", "log.to")


@contextlib.contextmanager
def tracked(config: Config, folder: Path, progress: Progress) -> Iterator[Progress]:
    """Yield progress whose rounds are also given to the trackers of `log.to`.

    They are opened with the first round: an engine may write its rounds in another process.
    """
    writers: list[Write] = []
    with contextlib.ExitStack() as stack:

        def round_done(record: Mapping[str, Any]) -> None:
            for name in config.log.to[len(writers) :]:
                module, open_tracker = TRACKERS[name]
                library = import_extra(module, f"log-{name}", "log.to")
                writers.append(stack.enter_context(open_tracker(library, folder)))
            metrics = metrics_of(record) if writers else {}
            for write in writers:
                write(record["round"], metrics)
            progress.round_done(record)

        yield replace(progress, round_done=round_done)


def metrics_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of rounds.jsonl as `WHAT PHASE/CLIENT`; "mean" is over clients.

    Characters that a tracker refuses are left out of the names.
    """
    found: dict[str, float] = {}
    for panel, curves in (training_losses([record]) | measured_losses([record])).items():
        found |= {f"loss {panel}/{client}": curve[0][1] for client, curve in curves.items()}
    for client in record["clients"]:
        for key, value in client.items():
            phase, _, what = key.rpartition(".")
            if what in ("tokens", "seconds"):
                found[f"{what} {phase}/{client['id']}"] = value
            elif what == "norm":
                found[f"update norm/{client['id']}"] = value
    found |= {f"round/{kind}": len(record[kind]) for kind in ("clients", "refused", "left_out")}
    for key in ("seconds", "bytes_up", "bytes_down", "step_norm", "update_cosine", "epsilon"):
        if record[key] is not None:
            found[f"round/{key}"] = record[key]
    return {re.sub(r"[^\w\-./ ]", "", name): float(value) for name, value in found.items()}


def _name_of(folder: Path) -> str:
    return f"{folder.resolve().name}-{_id_of(folder)}"


def _id_of(folder: Path) -> str:
    """Return the number that tells this run from others of its name, made once."""
    path = folder / RUN_ID
    if not path.exists():
        write_atomically(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8")
