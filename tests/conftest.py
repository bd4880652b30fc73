import sys

import pytest
import torch
from hypothesis import settings

from fedsdr.cli import main as cli_main

# The tiny model's products are too small to share between threads.
torch.set_num_threads(1)
# A slow machine is not a wrong answer.
settings.register_profile("fedsdr", deadline=None)
settings.load_profile("fedsdr")


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
