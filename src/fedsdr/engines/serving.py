"""The models that a run came to, over one loaded base."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from fedsdr.engines.site import Site
from fedsdr.tensors import Tensors
from fedsdr.types import Branch, ServerState

Forward = Callable[[], AbstractContextManager[None]]


def models_of(site: Site, state: ServerState) -> Iterator[tuple[str, Forward]]:
    """Give each model a name and what puts it into the forward.

    Where nothing is sent there is no global model beside the base, and a client without an S of its
    own is served with the global one. FedDPA's clients mix anew for each instance: left out.
    """
    method = site.method

    def forward_of(values: Tensors, branches: tuple[Branch, ...]) -> Forward:
        @contextmanager
        def forward() -> Iterator[None]:
            site.model.set(values)
            with site.model.using(*branches):
                yield

        return forward

    yield "base", forward_of({}, ())
    if method.sent:
        yield "global", forward_of(state.shared, method.global_model)
    if method.private and not method.mixed:
        for client in sorted(state.accepted):
            private = site.private_of(client, state)
            if private:
                yield (
                    f"client {client}",
                    forward_of({**state.shared, **private}, method.client_model),
                )
