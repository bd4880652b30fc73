"""Check the clients' rows against the model before anything is written."""

from collections.abc import Callable, Sequence

from fedsdr.data.clients import taking_part
from fedsdr.errors import UserError
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
    """UserError for rows that the model cannot hold or learn from, and where none can choose the
    round that is served; log what the model holds badly."""
    config = runtime.config
    validated = any(client.validation for client in taking_part(clients, config.data))
    if config.evaluation.keep == "best" and not validated:
        raise UserError(
            "evaluation.keep: 'best' is chosen on validation rows, and no client has enough rows "
            "for one; raise data.validation_fraction, or use 'last'"
        )
    stops = runtime.renderer.stop_token_ids
    if note := check_limits(runtime.limits, config, stops, rewrites=rewrites):
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
