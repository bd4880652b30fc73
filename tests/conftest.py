import sys

import pytest
import torch
from hypothesis import settings
from transformers.utils import logging as transformers_logging

from fedsdr.cli import main as cli_main

# The tiny model's products are too small to share between threads.
torch.set_num_threads(1)
# A bar that saving a model draws would be taken for what a command says.
transformers_logging.disable_progress_bar()
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
