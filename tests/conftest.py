import json
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import settings
from tiny import tiny_llama
from tiny_tokenizers import tiny_tokenizer
from transformers.utils import logging as transformers_logging

from fedsdr.cli import main as cli_main
from fedsdr.config import load_config
from fedsdr.progress import SILENT

WORDS = {
    "bank": "the loan has a rate of {} percent a year",
    "clinic": "the patient takes {} tablets a day",
    "school": "the sum of the numbers is {} in all",
}

# The tiny model's matrices are too small to split over threads.
torch.set_num_threads(1)
# Tests read standard error, where transformers would draw progress bars.
transformers_logging.disable_progress_bar()
# Examples may be slow on a busy machine.
settings.register_profile("fedsdr", deadline=None)
settings.load_profile("fedsdr")


def pytest_collection_modifyitems(items):
    """Give all tests of the embedded model to one xdist worker: each loads 500 MB."""
    for item in items:
        if item.get_closest_marker("embedded"):
            item.add_marker(pytest.mark.xdist_group("embedded"))


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


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A model folder as transformers writes it: a tiny Llama and a byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer()
    tiny_llama(packed=False, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    """Three clients of ten Alpaca rows each."""
    folder = tmp_path_factory.mktemp("clients")
    for name, words in WORDS.items():
        rows = [
            {"instruction": f"{name} question {i}", "input": "", "output": words.format(i)}
            for i in range(10)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


@pytest.fixture
def write_config(tmp_path, model_folder, data_folder, monkeypatch):
    """Return a function that writes a small, quick configuration and loads it."""
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))

    def write(*overrides: str):
        path = tmp_path / "config.toml"
        path.write_text(f"""
            [model]
            name = "{model_folder}"
            dtype = "fp32"
            [data]
            clients = "{data_folder}"
            max_length = 128
            [federation]
            rounds = 3
            [train]
            local_epochs = 1
            batch_size = 4
            lr = 1e-2
            pack_tokens = 1024
            mask_perplexity = 1e3
            [lora]
            rank = 2
            alpha = 4
            [teacher]
            engine = "transformers"
            max_new_tokens = 6
            filter = "none"
            [evaluation]
            max_new_tokens = 4
        """)
        return load_config(path, overrides)

    return write


@pytest.fixture
def deploy(tmp_path, data_folder, monkeypatch):
    """Return a function that runs a configuration over three sites of a grid in this process and
    returns the state and the grid. OUT is tmp_path/server, a site's folder tmp_path/sites/NAME;
    `own` are keys that the sites set.
    """
    from fake_grid import FakeGrid, nodes_of

    from fedsdr.flower import client_app, nodes, server_app
    from fedsdr.flower.run_config import to_run_config
    from fedsdr.training.methods import METHODS

    for module in (nodes, server_app):
        monkeypatch.setattr(module, "POLL_SECONDS", 0.001)

    def run(
        config, *, data=data_folder, log=lambda line: None, sites=3, own=(), nodes_as=dict, **grid
    ):
        engine = replace(config.engine, sites=sites, join_seconds=1, round_seconds=1)
        config, out = replace(config, engine=engine), tmp_path / "server"
        run_config = to_run_config(config) | {"out": str(out), "experiment": "trial"}
        grid_nodes = nodes_as(
            (number, node | dict(own))
            for number, node in nodes_of(data, tmp_path / "sites").items()
        )
        over = FakeGrid(client_app.app, grid_nodes, run_config, **grid)
        rewriting = METHODS[config.method.name].rewrites
        state = server_app.serve(over, config, out, replace(SILENT, log=log), rewriting=rewriting)
        return state, over

    return run
