"""`fedsdr --help`, unknown commands, shell completion and `python -m fedsdr`."""

import os
import subprocess
import sys

import pytest

from fedsdr.cli.main import GROUPS, SYNONYMS, cli

ENV = {**os.environ, "COLUMNS": "80"}


def module(*arguments: str, **env: str) -> str:
    command = [sys.executable, "-m", "fedsdr", *arguments]
    return subprocess.run(
        command, env=ENV | env, capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_help_lists_every_command_once_below_its_part_of_the_work_and_cuts_no_summary():
    text = module("--help")
    listed = [
        line.split()[0] for line in text.splitlines() if line.startswith("  ") and line[2:3] > " "
    ]
    assert sorted(set(listed) & cli.commands.keys()) == sorted(cli.commands)
    assert [name for name in listed if name in cli.commands] == [
        command.name for commands in GROUPS.values() for command in commands
    ]
    assert "..." not in text.partition("Start:")[2]
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("train", "run"), ("trian", "run"), ("evalute", "evaluate"), ("eval", "evaluate")],
)
def test_an_unknown_command_is_answered_with_the_one_that_is_meant(typed, meant, fedsdr):
    code, _, err = fedsdr(typed, "x.toml")
    assert code == 2
    assert (
        err == f"fedsdr: no command '{typed}'; did you mean '{meant}'? all are in: fedsdr --help\n"
    )


def test_every_synonym_leads_to_a_command_and_is_none_itself():
    assert set(SYNONYMS.values()) <= cli.commands.keys()
    assert not set(SYNONYMS) & cli.commands.keys()


def test_an_unknown_command_that_is_like_no_other_gets_no_guess(fedsdr):
    assert fedsdr("xyzzy")[2] == "fedsdr: no command 'xyzzy'; all are in: fedsdr --help\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_of_a_shell_asks_the_program(shell, fedsdr):
    code, out, _ = fedsdr("completion", shell)
    assert code == 0
    assert f"_FEDSDR_COMPLETE={shell}_complete" in out


def test_a_shell_gets_the_commands_that_begin_with_what_was_typed():
    out = module(_FEDSDR_COMPLETE="bash_complete", COMP_WORDS="fedsdr comp", COMP_CWORD="1")
    assert out.split() == ["plain,compare", "plain,completion"]
