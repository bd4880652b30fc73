"""Fuzz the parsers of test_fuzzing.py with input that atheris chooses by the code that it reaches.

    pip install atheris
    python tests/reliability/guided_fuzzing.py [SECONDS=60] [PARSER ...]

Each parser has a process of its own, since atheris ends the process. Exit code 1 on a fault, whose
traceback is printed.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).parents[:2]]


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one parser in this process, and end it."""
    import atheris

    with atheris.instrument_imports(include=["fedsdr"]):
        from test_fuzzing import PARSERS, read_or_refused

    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    with tempfile.TemporaryDirectory() as folder:

        @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.data())
        def read(data):
            read_or_refused(PARSERS[name], Path(folder), data.draw)

        options = [sys.argv[0], f"-max_total_time={seconds}", "-print_final_stats=1"]
        atheris.Setup([*options, f"-artifact_prefix={folder}/"], read.hypothesis.fuzz_one_input)
        atheris.Fuzz()


def main(seconds: int = 60, *names: str) -> bool:
    """Fuzz each parser in turn; return whether one of them failed."""
    from test_fuzzing import PARSERS

    failed = False
    for name in names or PARSERS:
        call = [sys.executable, __file__, "--one", str(seconds), name]
        done = subprocess.run(call, capture_output=True, text=True)
        lines = (done.stdout + done.stderr).splitlines()
        executed = [line.split()[-1] for line in lines if "number_of_executed_units" in line]
        print(f"{name}: {' '.join(executed)} inputs, exit code {done.returncode}", flush=True)
        if done.returncode:
            failed = True
            print("\n".join(lines[-60:]))
    return failed


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        fuzz(sys.argv[3], int(sys.argv[2]))
    else:
        sys.exit(main(*map(int, sys.argv[1:2]), *sys.argv[2:]))
