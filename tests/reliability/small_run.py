"""A small run of three clients, its uninterrupted result, and the comparison with it."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from fedsdr.config import Config
from fedsdr.files import digest_without_seconds
from fedsdr.progress import SILENT
from fedsdr.runs.client_runtime import ClientRuntime
from fedsdr.runs.run import run_experiment

CONFIG = """
[model]
name = "{model}"
dtype = "fp32"
[data]
clients = "{data}"
max_examples = 5
max_length = 64
[federation]
rounds = 2
update_dtype = "bf16"
[algorithm]
name = "fedavgm"
[train]
local_epochs = 1
batch_size = 4
lr = 1e-2
pack_tokens = 512
[lora]
rank = 2
alpha = 4
[teacher]
engine = "transformers"
max_new_tokens = 4
filter = "none"
[evaluation]
max_new_tokens = 2
"""


class Trial(NamedTuple):
    """A configuration, and what its uninterrupted run leaves and takes."""

    path: Path
    config: Config
    facts: dict[str, object]
    seconds: float
    operations: int  # that change files of the run folder
    open_runtime: Callable[[Config, Path], ClientRuntime]

    def run(self, out: Path, *, resume: bool = False, rounds: int = 2) -> None:
        """Run or resume in this process, with a cache of its own, on the base already loaded."""
        os.environ["FEDSDR_CACHE"] = str(out.with_name(f"{out.name}-cache"))
        federation = replace(self.config.federation, rounds=rounds)
        config = replace(self.config, federation=federation)
        run_experiment(config, out, SILENT, resume=resume, open_runtime=self.open_runtime)


def to_older_version(run: Path) -> None:
    """Take from a run folder all that finds damage: what the first version wrote is left."""
    for seal in run.rglob("manifest.*"):
        seal.unlink()
    marks = ("chain", "records", "run", "check", "manifest")
    audits = run.glob("distilled/**/audit.json")
    for path in (*run.rglob("state.json"), *audits, *run.glob("results.json")):
        facts = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in facts.items() if k not in marks}))
    lines = (run / "config.toml").read_text().splitlines(keepends=True)
    (run / "config.toml").write_text("".join(lines[1:]))


def facts_of(folder: Path) -> dict[str, object]:
    """Return the content of every file of a run folder, without seconds."""
    return {
        str(path.relative_to(folder)): _content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock", "report.html")
    }


def _content(path: Path) -> object:
    if path.name in ("results.json", "audit.json"):
        return digest_without_seconds(json.loads(path.read_text()))
    if path.name == "rounds.jsonl":
        return digest_without_seconds([json.loads(x) for x in path.read_text().splitlines()])
    return path.read_bytes()


def differences(trial: Trial, folder: Path) -> list[str]:
    """Return the files that differ from those of the uninterrupted run, or are too many."""
    found = facts_of(folder)
    names = sorted(trial.facts.keys() | found.keys())
    return [name for name in names if trial.facts.get(name) != found.get(name)]
