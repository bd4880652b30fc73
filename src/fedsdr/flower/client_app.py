"""Flower's side of a client: open what it holds, do one task, answer.

A site names itself in its node configuration, and never takes a path from the server:

    --node-config 'client="bank" data="/data/bank.jsonl" state-dir="/var/lib/fedsdr"'

S and the rewrites stay under STATE_DIR/EXPERIMENT/CLIENT/, laid out as the folder of a run is. Any
key of config.py may stand there too, and counts more than the server's. A node of a simulation has
a number instead, and all clients lie in the run's own folder.
"""

import contextlib
import dataclasses
import functools
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsdr.config import Config
from fedsdr.data.clients import load_clients, load_one_client
from fedsdr.distill.records import audit_of, read_records
from fedsdr.errors import Refusal, UserError
from fedsdr.files import alone, write_atomically
from fedsdr.flower.run_config import (
    RUN_ID,
    SITE_KEYS,
    Scalar,
    from_run_config,
    with_scalars,
)
from fedsdr.flower.wire import answer_to_records, task_from_records
from fedsdr.progress import SILENT
from fedsdr.runs.client_runtime import Site, open_site, train_at
from fedsdr.runs.rewriting import distill_clients, has_rewrites, prepare_rewriting
from fedsdr.runs.run_folder import check_data, start_folder
from fedsdr.runs.run_plan import client_settings
from fedsdr.types import ClientData, ClientFault, ClientTask, ClientUpdate, LocalSettings

logger = logging.getLogger(__name__)
_LOG = dataclasses.replace(SILENT, log=functools.partial(print, flush=True))
_ITS_OWN = ("client", "data", "state-dir")
_PRIVACY = ("privacy.mode", "privacy.clip_norm", "privacy.noise_multiplier")  # all of them, or none
Items = tuple[tuple[str, Scalar], ...]

app = ClientApp()


@app.query("join")
def join(message: Message, context: Context) -> Message:
    """Say who this is and how many training rows it has. The data are read, the model is not."""

    def introduce() -> dict[str, str | int]:
        _check_run(context, _run_of(message))
        config, _, client = _held(*_key(context))
        return {"client": client.client_id, **_counts(config, rows=len(client.raw))}

    return _told(message, context, introduce)


@app.train("rewrite")
def rewrite(message: Message, context: Context) -> Message:
    """Rewrite the training answers, if that is still to be done; answer with counts alone."""

    def count() -> dict[str, str | int]:
        with open_node(context, _run_of(message), message.metadata.ttl) as (site, client):
            audit = audit_of(read_records(site.distilled(client.client_id)))
        return _counts(site.config, answers=audit.answers, rewritten=audit.rewritten)

    return _told(message, context, count)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Do one client's work of one round."""
    answer = answer_task(task_from_records(message.content), context, message.metadata.ttl)
    return Message(answer_to_records(answer), reply_to=message)


def answer_task(task: ClientTask, context: Context, seconds: float) -> ClientUpdate | ClientFault:
    """Return the update, or why there is none; wait at most `seconds` for an earlier task's end.

    A site trains by the method, the clipping, the noise and the rounds that its own configuration
    has: what goes up is not for the server to choose task by task.
    """
    try:
        with open_node(context, task.run_id, seconds) as (site, client):
            asked, own = _what_goes_up(task.settings), _what_goes_up(client_settings(site.config))
            if (task.client_id, asked) != (client.client_id, own):
                raise Refusal(
                    f"is '{client.client_id}' with {own}, not '{task.client_id}' with {asked}"
                )
            rounds = site.config.federation.rounds
            if not 1 <= task.round <= rounds:
                raise Refusal(f"takes part in rounds 1 to {rounds} (its federation.rounds)")
            return train_at(site, client, task)
    except Exception as error:
        logger.exception("client '%s' has no answer for round %d", task.client_id, task.round)
        return ClientFault(task.client_id, task.round, _reason(error, context))


def _what_goes_up(settings: LocalSettings) -> str:
    return (
        f"method '{settings.method}', clip_norm {settings.clip_norm:g}, "
        f"local_noise {settings.local_noise:g}"
    )


def _counts(config: Config, **counts: int) -> dict[str, str | int]:
    """Return the counts; none for a server that is not trusted with them."""
    return {} if config.privacy.mode == "local" else {**counts}


def _reason(error: Exception, context: Context) -> str:
    """Return what the server is told of an error. The text may quote a site's own files: then it
    is told the kind alone; in a simulation there is nothing to hide, and no log that stays."""
    kind, text = type(error).__name__, " ".join(str(error).split())
    if isinstance(error, Refusal) or not _is_site(context):
        return text if isinstance(error, UserError) else f"{kind}: {text}"
    return f"{kind} (its log has more)"


@contextlib.contextmanager
def open_node(context: Context, run_id: str, seconds: float) -> Iterator[tuple[Site, ClientData]]:
    """Give the loaded base and what this client holds, with rewrites where the method reads them.

    No two tasks of a client work at once: one may be late, left behind by its round.
    """
    _check_run(context, run_id)
    _, folder, client = _held(*_key(context))
    with alone(folder / "clients" / client.client_id, seconds):
        _check_run(context, run_id)  # again: it may have waited for another run
        if _is_site(context):
            write_atomically(folder / RUN_ID, run_id)
        site = _site(*_key(context, of_client=False))
        if site.method.rewrites and not has_rewrites(site, [client]):
            distill_clients(site, prepare_rewriting(site), [client], _LOG)
        yield site, client


def _check_run(context: Context, run_id: str) -> None:
    """Refusal when a site keeps the state of another run under this experiment's name."""
    if not _is_site(context):
        return
    folder = _config_and_folder(*_key(context))[1]
    path = folder / RUN_ID
    before = path.read_text(encoding="utf-8") if path.exists() else None
    if before != run_id and (before or any((folder / "clients").glob("*/round-*"))):
        raise Refusal(
            f"keeps the state of another run in STATE_DIR/{'/'.join(folder.parts[-2:])}: give this "
            "run another name (--out), or have the site move that folder away"
        )


def _is_site(context: Context) -> bool:
    """Whether this node names its client; else it is one of a simulation."""
    return "client" in context.node_config


def _run_of(message: Message) -> str:
    return str(message.content.config_records["run"]["id"])


def _key(context: Context, of_client: bool = True) -> tuple[Items, Items]:
    """Return what an open node depends on. All clients of a simulation share one base."""
    node = context.node_config
    own = node if of_client or _is_site(context) else {}
    return tuple(sorted(context.run_config.items())), tuple(sorted(own.items()))


# A process that stays, as those of a simulation do, reads data and base once.
@functools.lru_cache(maxsize=1024)
def _held(run: Items, node: Items) -> tuple[Config, Path, ClientData]:
    config, folder = _config_and_folder(run, node)
    own = dict(node)
    if "client" not in own:
        return config, folder, _all_clients(run)[int(own["partition-id"])]
    client = load_one_client(config.data, str(own["data"]), str(own["client"]))
    check_data(folder, [client])
    return config, folder, client


@functools.lru_cache(maxsize=1)
def _all_clients(run: Items) -> list[ClientData]:
    return load_clients(_config_and_folder(run, ())[0].data)


@functools.lru_cache(maxsize=1)
def _site(run: Items, node: Items) -> Site:
    config, folder = _config_and_folder(run, node)
    if config.engine.threads:
        torch.set_num_threads(config.engine.threads)
    site = open_site(config, folder)
    if node:
        start_folder(site, [_held(run, node)[2]])
    return site


def _config_and_folder(run: Items, node: Items) -> tuple[Config, Path]:
    """Return the configuration as this node sees it, and where it keeps what is its own."""
    values, own = dict(run), dict(node)
    if "client" not in own:
        return from_run_config(values), Path(str(values["out"]))
    for key in _ITS_OWN:
        if not own.get(key):
            raise UserError(f"--node-config: '{key}' is not set; a site sets {', '.join(_ITS_OWN)}")
    experiment, client = str(values["experiment"]), str(own["client"])
    for name in (experiment, client):
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
            raise UserError(f"the name {name!r} of the experiment or client cannot name a folder")
    if own.get("experiment", experiment) != experiment:
        raise UserError(f"--node-config: takes part in '{own['experiment']}', not '{experiment}'")
    keys = {key: value for key, value in own.items() if key not in _ITS_OWN}
    pinned = [key for key in _PRIVACY if key in keys]
    if 0 < len(pinned) < len(_PRIVACY):
        missing = next(key for key in _PRIVACY if key not in keys)
        raise UserError(
            f"--node-config: {pinned[0]} is set, so set {missing} too, or whoever starts a run "
            "chooses it"
        )
    keys["data.clients"] = str(own["data"])
    config = with_scalars(from_run_config(values, without=SITE_KEYS), keys, "--node-config")
    return config, Path(str(own["state-dir"])).expanduser() / experiment / client


def _told(message: Message, context: Context, say: Callable[[], dict[str, str | int]]) -> Message:
    """Answer with a few words and numbers, or with why there are none."""
    try:
        told = ConfigRecord(dict(say()))
    except Exception as error:
        logger.exception("cannot answer '%s'", message.metadata.message_type)
        told = ConfigRecord({"fault": _reason(error, context)})
    return Message(RecordDict({"told": told}), reply_to=message)
