"""A short real study with the embedded model: `gpu.py`, part "study".

It needs the folder that `gpu.py --prepare` wrote: the model's file in parts, and the data.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.utils import logging

from fedsdr.config import load_config
from fedsdr.progress import SILENT
from fedsdr.runs.run import run_experiment

CONFIG = """
[model]
name = "{model}"
[data]
clients = "{data}"
max_examples = {rows}
max_test_examples = {tests}
max_length = 512
[federation]
rounds = {rounds}
[train]
local_epochs = 1
batch_size = 8
lr = 1e-3
[teacher]
engine = "transformers"
max_new_tokens = {new}
[evaluation]
max_new_tokens = {new}
"""


def rows(task: Any) -> Iterator[dict[str, Any]]:
    """Yield the seconds of the study and the test losses of its models."""
    if task.assets is None:
        yield {"note": "no --assets"}
        return
    logging.disable_progress_bar()
    size = {"rows": 16, "tests": 8, "rounds": 3, "new": 96}
    if not task.cuda:
        size = {"rows": 2, "tests": 1, "rounds": 1, "new": 4}
    with tempfile.TemporaryDirectory() as name:
        model, out = Path(name) / "model.gguf", Path(name) / "run"
        model.write_bytes(joined(task.assets))
        path = Path(name) / "study.toml"
        path.write_text(CONFIG.format(model=model, data=task.assets / "data", **size))
        began = time.perf_counter()
        results = run_experiment(load_config(path), out, SILENT)
        yield {"what": "seconds in all", "value": time.perf_counter() - began}
        for line in (out / "rounds.jsonl").read_text().splitlines():
            record = json.loads(line)
            yield {"what": f"seconds of round {record['round']}", "value": record["seconds"]}
        for client, models in losses(results).items():
            for kind, loss in models.items():
                yield {"what": f"test loss, {client}, {kind}", "value": loss}


def joined(assets: Path) -> bytes:
    """Return the model's file from its parts."""
    parts = sorted(assets.glob("model.gguf.*"), key=lambda path: int(path.suffix[1:]))
    return b"".join(path.read_bytes() for path in parts)


def losses(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the test loss by client and model."""
    return {
        name: {kind: found["loss"] for kind, found in client.items()
               if isinstance(found, dict) and "loss" in found}
        for name, client in results["clients"].items()
    }  # fmt: skip
