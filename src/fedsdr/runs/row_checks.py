"""Check the clients' rows against the model before anything is written."""

from collections.abc import Callable, Sequence

from fedsdr.models.model_limits import check_limits, unknown_note
from fedsdr.runs.client_runtime import ClientRuntime, check_rows
from fedsdr.types import ClientData


def check_clients(
    runtime: ClientRuntime,
    clients: Sequence[ClientData],
    log: Callable[[str], None],
    *,
    rewrites: bool,
) -> None:
    """UserError for rows that the model cannot hold or learn from; log what it holds badly."""
    stops = runtime.renderer.stop_token_ids
    if note := check_limits(runtime.limits, runtime.config, stops, rewrites=rewrites):
        log(note)
    for client in clients:
        unknown = []
        kinds = {"training": client.raw, "validation": client.validation, "test": client.test}
        for kind, examples in kinds.items():
            rows = runtime.encode(examples)
            check_rows(runtime.limits, client.client_id, kind, rows)
            unknown += [row.tokens.count(runtime.limits.unknown) for row in rows]
        if note := unknown_note(unknown):
            log(f"client '{client.client_id}': {note}")
