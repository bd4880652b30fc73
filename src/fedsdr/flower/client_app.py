"""The Flower ClientApp: load what a client holds, do one task, reply.

node_config.py says what a node's configuration means; client and node are the same in a simulation.
"""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedsdr.config import Config
from fedsdr.data.clients import load_clients, load_one_client, taking_part
from fedsdr.distill.records import audit_of, read_records
from fedsdr.errors import Refusal, UserError
from fedsdr.files import alone, write_atomically
from fedsdr.flower.node_config import NodeConfig, node_config_of
from fedsdr.flower.run_config import RUN_ID, Scalar
from fedsdr.flower.wire import (
    JoinReport,
    RewriteReport,
    answer_to_records,
    report_to_records,
    task_from_records,
)
from fedsdr.progress import SILENT
from fedsdr.runs.client_runtime import ClientRuntime, open_runtime, train_at
from fedsdr.runs.refresh import refresh_rewrites
from fedsdr.runs.rewriting import distill_clients, has_rewrites
from fedsdr.runs.run_folder import check_data, start_folder
from fedsdr.runs.run_plan import client_settings
from fedsdr.runs.teacher_setup import prepare_rewriting
from fedsdr.types import ClientData, ClientFault, ClientTask, ClientUpdate, LocalSettings

logger = logging.getLogger(__name__)
_LOG = dataclasses.replace(SILENT, log=functools.partial(print, flush=True))
RunItems = tuple[tuple[str, Scalar], ...]  # a run configuration, sorted

app = ClientApp()


@app.query("join")
def join(message: Message, context: Context) -> Message:
    """Report the client's name and its number of training rows. The model is not loaded."""

    def report() -> JoinReport:
        node = _node(context)
        _check_run(node, _run_of(message))
        client = _load_client(node, context)
        return JoinReport(client.client_id, len(client.raw) if _may_count(node.config) else 0)

    return _reply(message, context, report)


@app.train("rewrite")
def rewrite(message: Message, context: Context) -> Message:
    """Rewrite the training answers unless they are rewritten already; report counts alone."""

    def report() -> RewriteReport:
        with open_client(context, _run_of(message), message.metadata.ttl) as (runtime, client):
            audit = audit_of(read_records(runtime.distilled(client.client_id)))
        counts = (audit.answers, audit.rewritten) if _may_count(runtime.config) else (0, 0)
        return RewriteReport(*counts)

    return _reply(message, context, report)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Do one client's work of one round."""
    answer = answer_task(task_from_records(message.content), context, message.metadata.ttl)
    return Message(answer_to_records(answer), reply_to=message)


def answer_task(task: ClientTask, context: Context, seconds: float) -> ClientUpdate | ClientFault:
    """Return the update, or a fault with the reason; wait up to `seconds` for an earlier task.

    The site's own configuration decides method, clipping, noise and rounds: what a site sends is
    not for the server to choose task by task.
    """
    try:
        with open_client(context, task.run_id, seconds) as (runtime, client):
            asked, own = _disclosure(task.settings), _disclosure(client_settings(runtime.config))
            if (task.client_id, asked) != (client.client_id, own):
                raise Refusal(
                    f"is '{client.client_id}' with {own}, not '{task.client_id}' with {asked}"
                )
            rounds = runtime.config.federation.rounds
            if not 1 <= task.round <= rounds:
                raise Refusal(f"takes part in rounds 1 to {rounds} (its federation.rounds)")
            refresh_rewrites(runtime, client, task, _LOG.log)
            return train_at(runtime, client, task)
    except Exception as error:
        logger.exception("client '%s' has no update for round %d", task.client_id, task.round)
        return ClientFault(task.client_id, task.round, _reason(error, context))


@contextlib.contextmanager
def open_client(
    context: Context, run_id: str, seconds: float
) -> Iterator[tuple[ClientRuntime, ClientData]]:
    """Yield the loaded base and the client's data, rewritten if the method reads rewrites.

    Holds the lock on the client's folder: a late task that its round gave up on may still be
    running. BusyError if it does not end within `seconds`.
    """
    node = _node(context)
    _check_run(node, run_id)
    client = _load_client(node, context)
    with alone(node.folder / "clients" / client.client_id, seconds):
        _check_run(node, run_id)  # again: another run may have started during the wait
        if node.is_site:
            write_atomically(node.folder / RUN_ID, run_id)
        runtime = _load_runtime(node, client, context)
        if runtime.method.rewrites and not has_rewrites(runtime, [client]):
            distill_clients(runtime, prepare_rewriting(runtime), [client], _LOG)
        yield runtime, client


def _disclosure(settings: LocalSettings) -> str:
    """Return the settings that decide what an update reveals of a client."""
    return (
        f"method '{settings.method}', aggregation '{settings.aggregation}', "
        f"clip_norm {settings.clip_norm:g}, "
        f"local_noise {settings.local_noise:g}"
    )


def _may_count(config: Config) -> bool:
    """Return whether the server is trusted with counts; under local privacy it is not."""
    return config.privacy.mode != "local"


def _reply(
    message: Message, context: Context, make_report: Callable[[], JoinReport | RewriteReport]
) -> Message:
    """Reply with a report, or with the reason why there is none."""
    try:
        report: JoinReport | RewriteReport | ClientFault = make_report()
    except Exception as error:
        logger.exception("cannot reply to '%s'", message.metadata.message_type)
        report = ClientFault("", 0, _reason(error, context))
    return Message(report_to_records(report), reply_to=message)


def _reason(error: Exception, context: Context) -> str:
    """Return what the server is told of an error.

    Its text may quote a site's own files, so a site names the type alone unless it is a Refusal. A
    simulation has nothing to hide, and its log is not kept.
    """
    kind, text = type(error).__name__, " ".join(str(error).split())
    if isinstance(error, Refusal) or not _is_site(context):
        return text if isinstance(error, UserError) else f"{kind}: {text}"
    return f"{kind} (see the site's log)"


def _check_run(node: NodeConfig, run_id: str) -> None:
    """Raise a Refusal if a site's folder of this experiment holds the state of another run."""
    if not node.is_site:
        return
    path = node.folder / RUN_ID
    before = path.read_text(encoding="utf-8") if path.exists() else None
    if before != run_id and (before or any((node.folder / "clients").glob("*/round-*"))):
        raise Refusal(
            f"keeps the state of another run in STATE_DIR/{'/'.join(node.folder.parts[-2:])}: give "
            "this run another name (--out), or move that folder away at the site"
        )


def _run_of(message: Message) -> str:
    return str(message.content.config_records["run"]["id"])


def _is_site(context: Context) -> bool:
    return "client" in context.node_config


def _node(context: Context) -> NodeConfig:
    return node_config_of(context.run_config, context.node_config)


def _load_client(node: NodeConfig, context: Context) -> ClientData:
    if not node.is_site:
        return _simulated_clients(_run_items(context))[node.partition]
    client = load_one_client(node.config.data, node.data, node.client)
    check_data(node.folder, [client])
    return client


def _load_runtime(node: NodeConfig, client: ClientData, context: Context) -> ClientRuntime:
    if not node.is_site:
        return _simulated_runtime(_run_items(context))
    runtime = open_runtime(node.config, node.folder)
    for note in runtime.notes:
        _LOG.log(note)
    start_folder(runtime, [client])
    return runtime


def _run_items(context: Context) -> RunItems:
    return tuple(sorted(context.run_config.items()))


# A process of a simulation serves many messages of one run, so it reads data and base once; a
# site's process serves one message. All clients of a simulation share one base.
@functools.lru_cache(maxsize=1)
def _simulated_clients(run: RunItems) -> list[ClientData]:
    data = node_config_of(dict(run), {"partition-id": 0}).config.data
    return taking_part(load_clients(data), data)


@functools.lru_cache(maxsize=1)
def _simulated_runtime(run: RunItems) -> ClientRuntime:
    node = node_config_of(dict(run), {"partition-id": 0})
    return open_runtime(node.config, node.folder)
