"""Many clients of few rows, one by one and side by side: `gpu.py`, part "clients".

One round of 32 clients with 4 rows each, in the layers of SmolLM2-135M with random weights.
`engine.clients_at_once` = 1 trains one client after another, 0 as many together as fill a pack.
Without that key only the former is measured.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from clients import study_of
from gpu_step import SMOLLM2
from transformers.utils import logging

from fedsdr.config import load_config
from fedsdr.config_keys import EngineConfig
from fedsdr.progress import SILENT
from fedsdr.runs.run import run_experiment

KEY = "clients_at_once"


def rows(task: Any) -> Iterator[dict[str, Any]]:
    """Yield the seconds of the second round for each setting; the first one warms up."""
    logging.disable_progress_bar()
    layers = {name: getattr(SMOLLM2, name) for name in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads")}  # fmt: skip
    clients = 32 if task.cuda else 3
    exists = KEY in {field.name for field in fields(EngineConfig)}
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        config = study_of(clients, 2, Path(name), rows=4, sizes=layers if task.cuda else {})
        for value in (1, 0) if exists else (1,):
            if task.seconds_left < 15 and task.cuda:
                yield {"clients": clients, KEY: value, "note": "no time left"}
                return
            given = (f"engine.{KEY}={value}",) if exists else ()
            out = Path(name) / f"run-{value}"
            run_experiment(load_config(config, given), out, SILENT)
            lines = (out / "rounds.jsonl").read_text().splitlines()
            seconds.append(json.loads(lines[1])["seconds"])
            tokens = sum(
                value
                for client in json.loads(lines[1])["clients"]
                for key, value in client.items()
                if key.endswith(".tokens")
            )
            yield {"clients": clients, KEY: value, "seconds of a round": seconds[-1],
                   "tokens/s": tokens / seconds[-1],
                   "speed-up": seconds[0] / seconds[-1]}  # fmt: skip
    if not exists:
        yield {"clients": clients, "note": f"this version has no engine.{KEY}"}
