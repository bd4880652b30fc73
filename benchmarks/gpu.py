"""Checks and speed of fedsdr on one GPU, in at most nine minutes and without a network.

    PYTHONPATH=src python benchmarks/gpu.py [--parts checks,step] [--assets DIR] [--out DIR]
    PYTHONPATH=src python benchmarks/gpu.py --check          # which packages are missing
    PYTHONPATH=src python benchmarks/gpu.py --prepare DIR    # the model and the data of `study`

Each part runs in its own process and must end by its deadline; time that a part leaves goes to the
next ones. Every result is written to OUT/PART.jsonl as soon as it is known, and OUT/results.json is
rewritten after each part, so that a run that is cut off keeps what it measured. Without CUDA all
runs on the CPU at tiny sizes. Exit code 1: a check failed. See gpu.md for how to carry it.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SECONDS = {"checks": 120, "step": 260, "clients": 60, "study": 90}  # 530 in all
MODULES = {  # what a part imports beside the standard library, by its name on PyPI
    "checks": {"torch": "torch", "transformers": "transformers", "peft": "peft",
               "pydantic": "pydantic", "safetensors": "safetensors", "numpy": "numpy"},
    "clients": {"tomli_w": "tomli-w", "yaml": "pyyaml", "filelock": "filelock", "jinja2": "jinja2",
                "scipy": "scipy"},
    "study": {"gguf": "gguf", "rouge_score": "rouge-score"},
}  # fmt: skip
OPTIONAL = ("triton", "flash_attn", "liger_kernel")
PART_BYTES = 47 * 2**20  # of the model's file

Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What a part must know; a part is a function of this that yields rows."""

    cuda: bool
    assets: Path | None  # the folder that --prepare wrote
    deadline: float  # of `time.time`

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.time()


def missing(parts: list[str]) -> list[str]:
    """Return the packages that these parts need and that cannot be imported."""
    needed = {"checks", *parts}
    return [
        package
        for part, modules in MODULES.items()
        if part in needed or (part == "clients" and "study" in needed)
        for module, package in modules.items()
        if find_spec(module) is None
    ]


def machine() -> Row:
    """Return the versions, and what the GPU offers."""
    import torch

    from fedsdr.models.fused_ops import _can_compile
    from fedsdr.models.packed_attention import _varlen_attention

    facts: Row = {"python": sys.version.split()[0]}
    for name in ("torch", "transformers", "peft", *OPTIONAL):
        try:
            facts[name] = version(name.replace("_", "-"))
        except PackageNotFoundError:
            facts[name] = None
    if not torch.cuda.is_available():
        return facts | {"device": "cpu", "threads": torch.get_num_threads()}
    properties = torch.cuda.get_device_properties(0)
    return facts | {
        "device": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "variable-length FlashAttention": _varlen_attention() is not None,
        "compiles element-wise kernels": _can_compile(),
    }


def prepare(folder: Path) -> None:
    """Write the embedded model's file in parts, and rows of the embedded data, into a folder."""
    from dataclasses import asdict

    from fedsdr.data.embedded import embedded_rows
    from fedsdr.embedded_packages import embedded_model_file

    (folder / "data").mkdir(parents=True, exist_ok=True)
    split(embedded_model_file(), folder)
    for name, rows in embedded_rows("five-domains", seed=0, rows=24).items():
        lines = (
            json.dumps({key: asdict(row)[key] for key in ("instruction", "input", "response")})
            for row in rows
        )
        text = "".join(f"{line}\n" for line in lines).replace('"response":', '"output":')
        (folder / "data" / f"{name}.jsonl").write_text(text, encoding="utf-8")


def split(model: Path, folder: Path) -> None:
    """Write a model's file as FOLDER/model.gguf.0, .1, ... of at most PART_BYTES each."""
    content = model.read_bytes()
    for i, start in enumerate(range(0, len(content), PART_BYTES)):
        (folder / f"model.gguf.{i}").write_bytes(content[start : start + PART_BYTES])


def run_part(name: str, task: Task, out: Path) -> None:
    """Run one part in this process; print and keep each row as it comes."""
    part = importlib.import_module(f"gpu_{name}").rows
    with (out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
        for row in part(task):
            print("  " + "  ".join(f"{key} {shown(value)}" for key, value in row.items()))
            file.write(json.dumps(row) + "\n")
            for stream in (sys.stdout, file):
                stream.flush()


def shown(value: object) -> str:
    """Return a value as the tables print it."""
    return f"{value:.3g}" if isinstance(value, float) and value < 100 else (
        f"{value:,.0f}" if isinstance(value, float) else str(value)
    )  # fmt: skip


def run_all(parts: list[str], cuda: bool, assets: Path | None, out: Path) -> Row:
    """Run the parts, each in a process that is ended at its deadline; return the results."""
    out.mkdir(parents=True, exist_ok=True)
    results: Row = {"machine": machine(), "parts": {}}
    deadline = time.time()
    for name in parts:
        deadline += SECONDS[name]
        print(f"{name} ({deadline - time.time():.0f} s)", flush=True)
        (out / f"{name}.jsonl").unlink(missing_ok=True)
        command = [sys.executable, __file__, "--part", name, "--out", str(out)]
        command += ["--deadline", str(deadline), *(["--cuda"] if cuda else [])]
        command += ["--assets", str(assets)] if assets else []
        began = time.time()
        with (out / f"{name}.log").open("w") as log:
            try:
                code: object = subprocess.run(
                    command, stderr=log, timeout=deadline - time.time()
                ).returncode
            except subprocess.TimeoutExpired:
                code = "out of time"
        status = {0: "done"}.get(code, code) if isinstance(code, int) else code
        if isinstance(status, int):
            status = (f"exit code {code}: " + (out / f"{name}.log").read_text()[-2000:]).strip()
        results["parts"][name] = {
            "status": status,
            "seconds": round(time.time() - began, 1),
            "rows": list(kept(out / f"{name}.jsonl")),
        }
        print(f"  {status}", flush=True)
        (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    return results


def kept(path: Path) -> Iterator[Row]:
    """Yield the rows of a part; a last line that was cut off is left out."""
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def table(rows: list[Row]) -> str:
    """Return rows as a Markdown table with the columns of all of them."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        lines.append("| " + " | ".join(shown(row.get(key, "")) for key in columns) + " |")
    return "\n".join(lines)


def report(results: Row) -> str:
    """Return the results as Markdown."""
    text = [", ".join(f"{key} {value}" for key, value in results["machine"].items())]
    for name, part in results["parts"].items():
        text += ["", f"## {name}: {part['status']}, {part['seconds']} s", ""]
        text += [table(part["rows"])] if part["rows"] else []
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(SECONDS), help="in this order")
    parser.add_argument("--cpu", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--assets", type=Path, help="the folder that --prepare wrote")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--check", action="store_true", help="say what is missing, and stop")
    parser.add_argument("--prepare", type=Path, metavar="DIR")
    for name, kind in (("part", str), ("deadline", float)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--cuda", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.prepare:
        prepare(given.prepare)
        return
    if given.part:
        run_part(given.part, Task(given.cuda, given.assets, given.deadline), given.out)
        return
    parts = given.parts.split(",")
    if unknown := [part for part in parts if part not in SECONDS]:
        sys.exit(f"--parts: unknown {', '.join(unknown)} (choose from: {', '.join(SECONDS)})")
    absent = missing(parts)
    if absent:
        print(f"missing: {', '.join(absent)}; see benchmarks/gpu.md")
    if given.check and not {"torch", "pydantic"} & set(absent):
        print(*(f"{key}: {value}" for key, value in machine().items()), sep="\n")
    if given.check or absent:
        sys.exit(1 if absent else 0)
    import torch

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    results = run_all(parts, torch.cuda.is_available() and not given.cpu, given.assets, given.out)
    (given.out / "results.md").write_text(report(results), encoding="utf-8")
    print("\n" + report(results))
    failed = [row for part in results["parts"].values() for row in part["rows"]
              if row.get("ok") is False]  # fmt: skip
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
