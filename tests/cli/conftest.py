import sys

import pytest

from fedsdr.cli import main as cli_main


@pytest.fixture
def fedsdr(monkeypatch, capsys):
    """Run the command in this process; return (exit code, standard output, standard error)."""

    def run(*arguments: object):
        monkeypatch.setattr(sys, "argv", ["fedsdr", *map(str, arguments)])
        try:
            cli_main.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
