import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "clients.py"


def part(name):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--part", name, "--quick"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_benchmark_of_switching_clients_runs():
    assert part("change")["rows"] == 2


def test_the_benchmark_of_the_servers_work_runs_in_bounded_memory():
    rows = part("server")
    assert [row["update_dtype"] for row in rows] == ["fp32", "bf16", "int8"]
    assert [row["kb_up"] for row in rows] == [1843.2, 921.6, 464.64]
    # One update is 1.8 MB decoded: 50 of them did not stay in memory.
    assert all(row["growth_mb"] < 20 for row in rows)
