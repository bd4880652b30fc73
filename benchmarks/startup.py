"""Startup time of the program, and load time of the embedded model.

    python benchmarks/startup.py [--quick] [--out FILE.json]

Times are wall times of new Python processes. "Cold" converts the .gguf file into an empty cache;
"warm" finds the converted copy. Files are in the operating system's page cache.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAM = "from fedsdr.cli.main import main; main()"
LOAD = (
    "from fedsdr.config import ModelConfig; from fedsdr.models.base_model import load_base; "
    "load_base(ModelConfig())"
)
STEPS = {  # name -> code of the new process
    "python alone": "pass",
    "fedsdr --help": PROGRAM,
    "import torch": "import torch",
    "import transformers' model classes": "from transformers import LlamaForCausalLM",
}


def seconds(code: str, cache: Path, *arguments: str) -> float:
    """Return the wall time of running `code` in a new process."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"FEDSDR_CACHE": str(cache)},
    )
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one repeat, without the cold load")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    given = parser.parse_args()
    repeats = 1 if given.quick else given.repeats
    figures: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        for name, code in STEPS.items():
            arguments = ("--help",) if code == PROGRAM else ()
            seconds(code, cache, *arguments)  # warm up the page cache
            figures[name] = [seconds(code, cache, *arguments) for _ in range(repeats)]
        if not given.quick:
            figures["load the embedded model, cold"] = [seconds(LOAD, cache)]
            figures["load the embedded model, warm"] = [
                seconds(LOAD, cache) for _ in range(repeats)
            ]
    print("| step | seconds (median) | min | max | runs |")
    print("|---|--:|--:|--:|--:|")
    for name, own in figures.items():
        print(
            f"| {name} | {statistics.median(own):.2f} | {min(own):.2f} | {max(own):.2f} "
            f"| {len(own)} |"
        )
    if given.out:
        given.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
