"""The base, global and per-client models of a finished run."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, NamedTuple

from fedsdr.runs.client_runtime import ClientRuntime
from fedsdr.tensors import Tensors
from fedsdr.types import Branch, ServerState

Forward = Callable[[], AbstractContextManager[None]]
Kind = Literal["base", "global", "client"]


class Serving(NamedTuple):
    """A model: its branches and their values; `mixed`: FedDPA weights them per instance."""

    values: Tensors
    branches: tuple[Branch, ...]
    mixed: bool = False


def serving_of(
    runtime: ClientRuntime, state: ServerState, kind: Kind, client_id: str = ""
) -> Serving:
    """Return the base, the global, or the own model of `client_id`.

    The global model of a method that sends nothing is the base. A client without an own S has the
    global model, with the `values` of the state.
    """
    method = runtime.method
    if kind == "base":
        return Serving({}, ())
    private = runtime.private_of(client_id, state) if kind == "client" else {}
    if private:
        return Serving({**state.shared, **private}, method.client_model, method.mixed)
    return Serving(state.shared, method.global_model if method.sent else ())


def models_of(runtime: ClientRuntime, state: ServerState) -> Iterator[tuple[str, Forward]]:
    """Yield the name of each distinct model and a context manager that puts it into the forward.

    FedDPA's client models, which weight their branches per instance, are left out.
    """

    def forward_of(serving: Serving) -> Forward:
        @contextmanager
        def forward() -> Iterator[None]:
            runtime.model.set(serving.values)
            with runtime.model.using(*serving.branches):
                yield

        return forward

    yield "base", forward_of(serving_of(runtime, state, "base"))
    if runtime.method.sent:
        yield "global", forward_of(serving_of(runtime, state, "global"))
    for client in sorted(state.accepted):
        own = serving_of(runtime, state, "client", client)
        if own.values is not state.shared and not own.mixed:
            yield f"client {client}", forward_of(own)
