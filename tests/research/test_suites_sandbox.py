"""The sandbox: what runs to its end passes, and what would do harm does not."""

import os
import socket

import pytest

from fedsdr.research.suites import sandbox
from fedsdr.research.suites.catalogue import passes
from fedsdr.research.suites.questions import Question
from fedsdr.research.suites.sandbox import runs_well

HARMLESS = {
    "a right answer": "assert sorted([2, 1]) == [1, 2]",
    "the standard library": "import math, re, hashlib, typing, collections, itertools",
    "a file of its own": "open('own.txt', 'w').write('x'); assert open('own.txt').read() == 'x'",
    "much printing": "print('x' * 100_000)",
}
HARMFUL = {
    "a wrong answer": "assert 1 == 2",
    "what does not parse": "def f(:\n",
    "an early end that looks like success": "import os; os._exit(0)",
    "an early end by exception": "raise SystemExit(0)",
    "an endless loop": "while True: pass",
    "sleep": "import time; time.sleep(60)",
    "all memory": "x = bytearray(8 << 30)",
    "a large file": "open('big', 'wb').write(b'x' * (8 << 20))",
    "another program": "import subprocess; subprocess.run(['true'], check=True)",
    "a shell": "import os; assert os.system('true') == 0",
    "a fork": "import os; os.fork()",
    "C functions": "import ctypes; ctypes.CDLL(None).getpid()",
    "reading what is not its own": "open('/etc/hostname').read()",
    "a database, whose C code asks nobody": "import sqlite3; sqlite3.connect('own.db')",
    "a program by the C code of subprocess": "import multiprocessing.util, _posixsubprocess",
    "packages of this environment": "import numpy",
}


@pytest.mark.parametrize("case", HARMLESS)
def test_a_program_that_does_no_harm_comes_to_its_end(case):
    assert runs_well(HARMLESS[case])


@pytest.mark.parametrize("case", HARMFUL)
def test_a_program_that_fails_or_oversteps_does_not_pass(case):
    endless = case in ("an endless loop", "sleep")
    assert not runs_well(HARMFUL[case], seconds=2 if endless else 30)


@pytest.mark.parametrize("namespace", [True, False])
def test_there_is_no_network(namespace, monkeypatch):
    if not namespace:  # where Linux lets us make none, Python's own sockets are refused
        monkeypatch.setattr(sandbox, "_without_network", lambda: ())
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        program = f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=2)"
        assert not runs_well(program)
        with pytest.raises(TimeoutError):
            server.accept()


def test_files_elsewhere_are_neither_written_nor_removed(tmp_path):
    kept = tmp_path / "kept.txt"
    kept.write_text("before")
    for program in (
        f"open({str(kept)!r}, 'w').write('after')",
        f"import os; os.remove({str(kept)!r})",
        f"import os; os.rename({str(kept)!r}, 'own')",
        f"import shutil; shutil.rmtree({str(tmp_path)!r})",
        f"import os; os.symlink({str(kept)!r}, 'own'); open('own', 'w').write('after')",
        f"import os; os.mkfifo({str(tmp_path / 'new')!r})",
        f"import posix; posix.mknod({str(tmp_path / 'new')!r})",
        f"import os; os.setxattr({str(kept)!r}, 'user.mark', b'x')",
    ):
        assert not runs_well(program)
        assert kept.read_text() == "before"
        assert list(tmp_path.iterdir()) == [kept]
        assert os.listxattr(kept) == []


def test_humaneval_passes_with_its_own_solution_and_fails_with_another():
    question = Question(
        id="HumanEval/made-up",
        group="humaneval",
        text='def double(x):\n    """Return x twice."""\n',
        answer="    return 2 * x\n",
        test="def check(candidate):\n    assert candidate(4) == 8\n\ncheck(double)\n",
    )
    assert passes(question, question.answer) == 1
    assert passes(question, "    return 3 * x\n") == 0
    assert passes(question, "\n    # nothing\n") == 0
