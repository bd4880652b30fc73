"""Windows and macOS: a whole run without the modules and functions that Linux alone has."""

import json
import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
# Python reads it at the start of every process, the worker of chat templates included.
WITHOUT = """
import builtins, os, signal, sys

MISSING = {"resource", "fcntl", "pwd", "grp", "termios"}
original = builtins.__import__

def is_ours(module):
    return module == "__main__" or module.startswith("fedsdr")

def limited(name, globals=None, *rest, **named):
    if name in MISSING and is_ours((globals or {}).get("__name__", "")):
        raise ModuleNotFoundError(f"No module named {name!r}")
    return original(name, globals, *rest, **named)

def refused(name, function):
    def call(*arguments, **named):  # other libraries ask for the system, which is Linux here
        if is_ours(sys._getframe(1).f_globals["__name__"]):
            raise AttributeError(f"no {name} on this system")
        return function(*arguments, **named)
    return call

builtins.__import__ = limited
for module, names in (
    (os, "killpg getuid geteuid getgid mkfifo nice getloadavg sysconf sched_getaffinity fork"),
    (signal, "alarm setitimer"),
):
    for name in names.split():
        setattr(module, name, refused(name, getattr(module, name)))
del signal.SIGHUP, signal.SIGALRM
"""


def test_a_run_and_its_report_need_nothing_that_linux_alone_has(write_config, tmp_path):
    write_config()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WITHOUT)
    out = tmp_path / "run"
    arguments = ["run", str(tmp_path / "config.toml"), "--out", str(out)]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "fedsdr",
            *arguments,
            "--set",
            "federation.rounds=1",
            "--set",
            "evaluation.retention=false",
        ],
        env={**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{SOURCE}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads((out / "results.json").read_text())["clients"]) == 3
    assert (out / "report.html").exists()


def test_the_process_of_a_chat_template_ends_over_its_seconds_without_an_alarm(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    code = """
import time
from fedsdr.data.bounded_template import BoundedTemplate, TemplateBoundError
loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
began = time.monotonic()
try:
    BoundedTemplate(loop, {}, seconds=1).render()
except TemplateBoundError as error:
    print(f"ended: {error}", time.monotonic() - began < 10)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{SOURCE}"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.endswith("memory True\n"), done.stderr
