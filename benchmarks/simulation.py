"""Memory and time of many virtual clients in Flower's simulation, compared with one process.

    python benchmarks/simulation.py [--clients 1000] [--rounds 2] [--parallel 1]

A tiny random model and 16 rows per client, method dual-raw, as in clients.py. The files of R and S
must equal those of the run in one process. Memory is the peak of the sum of proportional set sizes
(Linux, shared pages counted once) over all processes of the run.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from clients import study_of

MARK = "FEDSDR_BENCHMARK"


def memory_mb(mark: str) -> float:
    """Return the total memory of all processes with this mark in their environment."""
    total = 0
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={mark}".encode() in environment.read_bytes():
                sizes = environment.with_name("smaps_rollup").read_text()
                total += int(re.search(r"^Pss:\s+(\d+)", sizes, re.MULTILINE)[1])
        except (OSError, TypeError):  # the process has ended
            continue
    return total / 1024


def measured(config: Path, out: Path, *options: str) -> tuple[float, float]:
    """Run `fedsdr run` and return (seconds, peak MB)."""
    mark = f"{os.getpid()}-{out.name}"
    environment = {**os.environ, MARK: mark, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fedsdr.cli.main", "run", config, "--out", out, *options]
    peaks, over = [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            peaks.append(memory_mb(mark))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    try:
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    finally:
        over.set()
        watcher.join()
    return time.perf_counter() - began, max(peaks)


def main() -> None:
    """Run both engines and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--parallel", type=int, default=1, help="clients that train concurrently")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        config = study_of(given.clients, given.rounds, Path(name))
        one, simulated = Path(name) / "one", Path(name) / "simulated"
        figures = {
            "one process": measured(config, one),
            "simulation": measured(
                config, simulated, "--engine", "flower",
                "--set", f"engine.parallel_clients={given.parallel}",
            ),
        }  # fmt: skip
        adapters = [path.relative_to(one) for path in one.rglob("*.safetensors")]
        for path in adapters:
            if (one / path).read_bytes() != (simulated / path).read_bytes():
                raise AssertionError(f"{path} differs")
    print(f"{given.clients} clients, {given.rounds} rounds; {len(adapters)} equal files\n")
    print("| engine | seconds | seconds per client and round | peak MB of all processes |")
    print("| :-- | --: | --: | --: |")
    for engine, (seconds, peak) in figures.items():
        each = seconds / given.clients / given.rounds
        print(f"| {engine} | {seconds:.0f} | {each:.3f} | {peak:.0f} |")


if __name__ == "__main__":
    main()
