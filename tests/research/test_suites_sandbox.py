"""The sandbox: a program that runs to its end passes, and none reaches what is not its own."""

import os
import shutil
import socket

import pytest

from fedsdr.errors import UserError
from fedsdr.research.suites.sandbox import passes, sandbox_prefix


@pytest.fixture(scope="module")
def bwrap():
    try:
        return sandbox_prefix(unsafe=False)
    except UserError as error:
        pytest.skip(str(error))


HARMLESS = {
    "a right answer": "assert sorted([2, 1]) == [1, 2]",
    "the standard library": "import math, re, hashlib, typing, collections, itertools, random",
    "a file of its own": "open('own.txt', 'w').write('x'); assert open('own.txt').read() == 'x'",
    "much printing": "print('x' * 100_000)",
}
FAILING = {
    "a wrong answer": "assert 1 == 2",
    "what does not parse": "def f(:\n",
    "an early end that looks like success": "import os; os._exit(0)",
    "an early end by exception": "raise SystemExit(0)",
    "an endless loop": "while True: pass",
    "all memory": "x = bytearray(8 << 30)",
    "a large file": "open('big', 'wb').write(b'x' * (8 << 20))",
    "reading its input": "input()",
    "packages of this environment": "import numpy",
}
OVERSTEPPING = {
    "a file of the system": "open('/etc/hostname').read()",
    "a file of this project": f"open({__file__!r}).read()",
    "a change of the system": "open('/usr/lib/own.txt', 'w')",
    "a file elsewhere": "open('/own.txt', 'w')",
    "shared memory": "open('/dev/shm/own', 'w')",
    "a full /tmp": "for i in range(100): open(str(i), 'wb').write(b'x' * (1 << 20))",
}


@pytest.mark.parametrize("case", HARMLESS)
def test_a_harmless_program_passes_in_the_sandbox_and_without(case, bwrap):
    assert passes(HARMLESS[case], bwrap)
    assert passes(HARMLESS[case], ())


@pytest.mark.parametrize("case", FAILING)
def test_a_program_that_fails_or_oversteps_its_bounds_does_not_pass(case, bwrap):
    assert not passes(FAILING[case], bwrap)


@pytest.mark.parametrize("case", [name for name in FAILING if name != "an endless loop"])
def test_bounds_hold_without_the_sandbox_too(case):
    assert not passes(FAILING[case], ())


@pytest.mark.parametrize("case", OVERSTEPPING)
def test_nothing_but_the_systems_libraries_can_be_read_and_nothing_written(case, bwrap):
    assert not passes(OVERSTEPPING[case], bwrap)


def test_a_shell_that_the_program_starts_is_in_the_sandbox_too(bwrap, tmp_path):
    kept = tmp_path / "kept.txt"
    kept.write_text("before")
    shell = f"import subprocess; subprocess.run(['sh', '-c', 'echo after > {kept}'])"
    passes(shell, bwrap)
    passes(f"import ctypes; ctypes.CDLL(None).system(b'rm -rf {tmp_path}')", bwrap)
    assert kept.read_text() == "before"
    assert list(tmp_path.iterdir()) == [kept]


def test_there_is_no_network_in_the_sandbox(bwrap):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        program = f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=2)"
        assert passes(program, ())
        server.accept()[0].close()
        assert not passes(program, bwrap)
        with pytest.raises(TimeoutError):
            server.accept()


def test_the_program_sees_no_variable_of_this_environment(bwrap, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "secret")
    program = "import os; assert 'MY_TOKEN' not in os.environ"
    assert passes(program, bwrap)
    assert passes(program, ())


def test_without_bubblewrap_code_is_refused_unless_the_flag_names_the_risk(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"not installed.*package bubblewrap.*--unsafe-code"):
        sandbox_prefix(unsafe=False)
    assert sandbox_prefix(unsafe=True) == ()


def test_a_bubblewrap_that_fails_is_reported_in_its_own_words(monkeypatch, tmp_path):
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert shutil.which("bwrap") == str(fake)
    with pytest.raises(UserError, match="No permissions to create new namespace"):
        sandbox_prefix(unsafe=False)
    assert sandbox_prefix(unsafe=True) == ()
