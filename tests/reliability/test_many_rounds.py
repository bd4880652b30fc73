"""Many rounds with faults: memory and open files do not grow, and nothing is left behind."""

import gc
import json
import logging
import os
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from small_run import CONFIG

from fedsdr.config import load_config
from fedsdr.progress import SILENT
from fedsdr.runs import run as run_module
from fedsdr.runs.in_process import in_process
from fedsdr.runs.run import run_experiment


def memory_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_memory_and_open_files_do_not_grow_over_many_rounds_with_faults(
    full, tmp_path, model_folder, monkeypatch
):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    rounds, clients = (200, 50) if full else (8, 4)
    data = tmp_path / "data"
    data.mkdir()
    for number in range(clients):
        rows = [{"instruction": f"q{i}", "output": f"{number} and {i}"} for i in range(3)]
        (data / f"c{number:02}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    path, out = tmp_path / "config.toml", tmp_path / "run"
    path.write_text(CONFIG.format(model=model_folder, data=data))
    overrides = (
        f"federation.rounds={rounds}",
        "method.name=plain",  # with the rounding errors of bf16 updates kept at the client
        "algorithm.name=fedadam",
        "evaluation.max_new_tokens=1",
    )
    # pytest keeps every log record, with the traceback of the fault and what its frames hold.
    monkeypatch.setattr(logging.getLogger(in_process.__module__), "disabled", True)
    rng, faults, trace = random.Random(1), Counter(), []
    monkeypatch.setattr(run_module, "train_at", faulty(run_module.train_at, rng, faults))

    def log(line: str) -> None:
        if line.startswith("round "):
            gc.collect()
            trace.append((memory_mb(), len(os.listdir("/proc/self/fd"))))

    run_experiment(load_config(path, overrides), out, replace(SILENT, log=log))
    memory, files = np.array(trace)[rounds // 4 :].T
    slope = np.polyfit(range(len(memory)), memory, 1)[0]
    records = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    refused = sum(len(record["refused"]) for record in records)
    print(f"{len(records)} rounds, {refused} refused {dict(faults)}, {slope:.4f} MB a round")
    assert len(records) == rounds
    assert refused == sum(faults.values()) > 0
    assert len(set(files)) == 1
    assert slope < (0.1 if full else 5)
    assert [p for p in out.rglob("*") if p.suffix in (".tmp", ".old")] == []
    assert all(len(list(c.glob("round-*"))) <= 2 for c in (out / "clients").iterdir())


def faulty(train, rng, faults):
    """Return `train` with errors before it, and broken updates after it, in one of ten tasks."""

    def answer(*arguments):
        kind = rng.choices(["", "error", "disk error", "NaN"], [90, 4, 2, 4])[0]
        faults.update([kind] if kind else [])
        if kind == "error":
            raise MemoryError
        if kind == "disk error":
            raise OSError(5, "Input/output error")
        update = train(*arguments)
        if kind == "NaN":
            broken = {name: x * float("nan") for name, x in update.delta.items()}
            update = replace(update, delta=broken)
        return update

    return answer
