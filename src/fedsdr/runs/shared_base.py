"""One loaded base model for consecutive runs."""

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fedsdr.config import Config
from fedsdr.models.base_model import dtype_of
from fedsdr.models.memory import choose_pack, clients_in_a_step
from fedsdr.runs.client_runtime import ClientRuntime, open_runtime, runtime_of, with_pack


def one_base() -> Callable[[Config, Path, int], ClientRuntime]:
    """Return an `open_runtime` that reuses the last base model if the next run can use it.

    An automatic pack size is chosen once for all runs with the same shapes.
    """
    held: list[ClientRuntime] = []
    packs: dict[str, int] = {}

    def model(of: Config) -> tuple[object, ...]:
        # Runs with different templates share a base.
        loaded = replace(of.model, dtype=dtype_of(of.model), template="auto")
        return loaded, repr(replace(of.lora, dropout=0.0)), of.train.checkpointing

    def open_(config: Config, folder: Path, clients: int = 0) -> ClientRuntime:
        wanted = model(config)
        reused = bool(held) and model(held[0].config) == wanted
        if not reused:
            held.clear()  # before loading the next one: two may not fit in memory
            gc.collect()  # modules have reference cycles
        if not config.train.pack_tokens:
            at_once = clients_in_a_step(config, clients)
            shape = repr((wanted, config.data.max_length, config.lora.dropout, at_once))
            if shape not in packs:
                packs[shape] = choose_pack(config, clients, loaded=reused)[0]
            config = with_pack(config, packs[shape])
        if reused:
            return runtime_of(config, folder, held[0].base, held[0].model)
        held.append(open_runtime(config, folder))
        return held[0]

    return open_
