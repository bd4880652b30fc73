"""Run the benchmarks of docs/performance.md and write their tables there: `make bench`.

    python benchmarks/bench.py [--parts step,rewriting] [--docs FILE]

The table of a part is the standard output of its script. It stands in the document between
`<!-- bench: PART -->` and `<!-- end -->`, below a line on the machine, its load and the versions.
All parts take less than 15 minutes on two idle cores.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).parent
PARTS = {  # part -> script and arguments
    "step": ("train_step.py", "--rows", "10", "--repeats", "2"),
    "rewriting": ("rewrite.py", "--prompts", "16", "--repeats", "2"),
    "startup": ("startup.py", "--repeats", "3"),
}
PACKAGES = ("torch", "transformers", "peft", "trl", "openvino-genai")
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def machine() -> str:
    """Return one line on the CPU, its matrix instructions, its load, and the versions."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    model = re.search(r"model name\s*: (.*)", text)
    flags = set((re.search(r"flags\s*: (.*)", text) or [""])[0].split())
    cpu = model[1] if model else platform.processor() or platform.machine()
    known = [flag for flag in CPU_FLAGS if flag in flags] or ["no AVX2"]
    return (
        f"{os.cpu_count()} cores of {cpu} ({', '.join(known)}), "
        f"{os.environ.get('OMP_NUM_THREADS') or os.cpu_count()} threads, load before the start "
        f"{os.getloadavg()[0]:.1f}; {', '.join(map(package, PACKAGES))}"
    )


def package(name: str) -> str:
    """Return a package and its version."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"no {name}"


def with_table(document: str, part: str, table: str) -> str:
    """Return the document with a part's table replaced. ValueError without its markers."""
    begin, end = f"<!-- bench: {part} -->", "<!-- end -->"
    before, marker, rest = document.partition(begin)
    _, closing, after = rest.partition(end)
    if not (marker and closing):
        raise ValueError(f"the document has no {begin} ... {end}")
    return f"{before}{begin}\n{table.strip()}\n{end}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs" / "performance.md")
    given = parser.parse_args()
    parts = given.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        sys.exit(f"--parts: unknown {', '.join(unknown)} (choose from: {', '.join(PARTS)})")
    for part in parts:
        script, *arguments = PARTS[part]
        line = machine()
        print(f"{part}: {script} {' '.join(arguments)}", flush=True)
        done = subprocess.run(
            [sys.executable, str(HERE / script), *arguments], stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            sys.exit(f"{script}: exit code {done.returncode}")
        print(done.stdout, flush=True)
        text = given.docs.read_text(encoding="utf-8")
        table = f"Measured on {line}.\n\n{done.stdout}"
        given.docs.write_text(with_table(text, part, table), encoding="utf-8")


if __name__ == "__main__":
    main()
