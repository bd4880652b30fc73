"""Flower's side of a client: open what it holds, do one task, answer.

A site names itself in its node configuration, and never takes a path from the server:

    --node-config 'client="bank" data="/data/bank.jsonl" state-dir="/var/lib/fedsdr"'

S and the rewrites stay under STATE_DIR/EXPERIMENT/CLIENT/, laid out as the folder of a run is. Any
key of config.py may stand there too, and counts more than the server's. A node of a simulation has
a number instead, and all clients lie in the run's own folder.
"""

import contextlib
import dataclasses
import fcntl
import functools
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsdr.config import Config
from fedsdr.distill.records import audit_of, read_records
from fedsdr.engines.distilling import distill_clients, has_rewrites, prepare_rewriting
from fedsdr.engines.experiment import clients_of, one_client_of, settings_of
from fedsdr.engines.flower.records import answer_to_records, task_from_records
from fedsdr.engines.flower.run_config import SITE_KEYS, Scalar, from_run_config, with_scalars
from fedsdr.engines.in_process import in_process
from fedsdr.engines.progress import SILENT
from fedsdr.engines.run_folder import check_data, start_folder
from fedsdr.engines.site import Site, open_site, train_at
from fedsdr.errors import DiskError, UserError
from fedsdr.files import disk_errors_named
from fedsdr.types import ClientData, ClientFault, ClientTask, ClientUpdate, LocalSettings

logger = logging.getLogger(__name__)
_LOG = dataclasses.replace(SILENT, log=functools.partial(print, flush=True))
_ITS_OWN = ("client", "data", "state-dir")
Items = tuple[tuple[str, Scalar], ...]

app = ClientApp()


@app.query("join")
def join(message: Message, context: Context) -> Message:
    """Say who this is and how many training rows it has. The data are read, the model is not."""

    def introduce() -> dict[str, str | int]:
        config, _, client = _held(*_key(context))
        return {"client": client.client_id, **_counts(config, rows=len(client.raw))}

    return _told(message, introduce)


@app.train("rewrite")
def rewrite(message: Message, context: Context) -> Message:
    """Rewrite the training answers, if that is still to be done; answer with counts alone."""

    def count() -> dict[str, str | int]:
        site, client = open_node(context)
        audit = audit_of(read_records(site.distilled(client.client_id)))
        return _counts(site.config, answers=audit.answers, rewritten=audit.rewritten)

    return _told(message, count)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Do one client's work of one round."""
    answer = answer_task(task_from_records(message.content), context)
    return Message(answer_to_records(answer), reply_to=message)


def answer_task(task: ClientTask, context: Context) -> ClientUpdate | ClientFault:
    """Return the update, or why there is none, as the engine in one process does.

    A site trains by the method, the clipping and the noise that its own configuration has: what
    goes up is not for the server to choose task by task.
    """

    def work(task: ClientTask) -> ClientUpdate:
        site, client = open_node(context)
        asked, own = _what_goes_up(task.settings), _what_goes_up(settings_of(site.config))
        if (task.client_id, asked) != (client.client_id, own):
            raise UserError(
                f"is '{client.client_id}' with {own}, not '{task.client_id}' with {asked}"
            )
        with _alone(site.store(client.client_id).folder):
            return train_at(site, client, task)

    try:
        (answer,) = in_process(work)([task])
    except DiskError as error:
        logger.error("%s", error)
        answer = ClientFault(task.client_id, task.round, "its disk refuses (its log has more)")
    return answer


def _what_goes_up(settings: LocalSettings) -> str:
    return (
        f"method '{settings.method}', clip_norm {settings.clip_norm:g}, "
        f"local_noise {settings.local_noise:g}"
    )


def _counts(config: Config, **counts: int) -> dict[str, str | int]:
    """Return the counts; none for a server that is not trusted with them."""
    return {} if config.privacy.mode == "local" else {**counts}


def open_node(context: Context) -> tuple[Site, ClientData]:
    """Return the loaded base and what this client holds, with rewrites where the method reads them.

    UserError without particulars, which may quote the data: those are in the log here.
    """
    try:
        client = _held(*_key(context))[2]
        site = _site(*_key(context, of_client=False))
        if site.method.rewrites and not has_rewrites(site, [client]):
            distill_clients(site, prepare_rewriting(site), [client], _LOG)
        return site, client
    except DiskError:
        raise
    except UserError as error:
        logger.error("%s", error)
        raise UserError("cannot open its data or model, or rewrite (its log has more)") from error


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for another process that trains the same client: a late one, left behind by its round,
    would else take away the S of a later round."""
    with disk_errors_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _key(context: Context, of_client: bool = True) -> tuple[Items, Items]:
    """Return what an open node depends on. All clients of a simulation share one base."""
    node = context.node_config
    own = node if of_client or "client" in node else {}
    return tuple(sorted(context.run_config.items())), tuple(sorted(own.items()))


# A process that stays, as those of a simulation do, reads data and base once.
@functools.lru_cache(maxsize=1024)
def _held(run: Items, node: Items) -> tuple[Config, Path, ClientData]:
    config, folder = _config_and_folder(run, node)
    own = dict(node)
    if "client" not in own:
        return config, folder, _all_clients(run)[int(own["partition-id"])]
    client = one_client_of(config, str(own["data"]), str(own["client"]))
    check_data(folder, [client])
    return config, folder, client


@functools.lru_cache(maxsize=1)
def _all_clients(run: Items) -> list[ClientData]:
    return clients_of(_config_and_folder(run, ())[0])


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
    keys = {key: value for key, value in own.items() if key not in _ITS_OWN}
    keys["data.clients"] = str(own["data"])
    config = with_scalars(from_run_config(values, without=SITE_KEYS), keys, "--node-config")
    return config, Path(str(own["state-dir"])).expanduser() / experiment / client


def _told(message: Message, say: Callable[[], dict[str, str | int]]) -> Message:
    """Answer with a few words and numbers, or with the kind of error, which has no text of ours."""
    try:
        told = ConfigRecord(dict(say()))
    except Exception as error:
        logger.exception("cannot answer '%s'", message.metadata.message_type)
        told = ConfigRecord({"fault": f"{type(error).__name__} (its log has more)"})
    return Message(RecordDict({"told": told}), reply_to=message)
