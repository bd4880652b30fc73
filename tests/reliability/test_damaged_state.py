"""Damage to the state of a run is found and named, never used and never taken for absence."""

import shutil

import pytest

from fedsdr.data.clients import load_clients
from fedsdr.errors import UserError
from fedsdr.progress import SILENT
from fedsdr.runs.evaluation import evaluate_clients
from fedsdr.runs.run import run_experiment
from fedsdr.runs.run_folder import open_run

STATE = (
    "checkpoint/round-0001/shared.safetensors",
    "checkpoint/round-0001/memory.m.safetensors",
    "checkpoint/round-0001/state.json",
    "checkpoint/round-0001/manifest.json",
    "checkpoint/round-0001/manifest.sha256",
    "clients/bank/round-0001/adapter_model.safetensors",
    "clients/bank/round-0001/adapter_config.json",
    "clients/bank/round-0001/residual.safetensors",
    "clients/bank/round-0001/manifest.json",
    "clients/bank/round-0001/manifest.sha256",
    "distilled/bank.jsonl",
    "distilled/audit.json",
    "distilled/manifest.json",
    "distilled/manifest.sha256",
    "rounds.jsonl",
    "data.json",
    "config.toml",
)


@pytest.fixture(scope="module")
def half(tmp_path_factory, model_folder, data_folder):
    """A run of one round, and a function that returns its configuration with more rounds."""
    from fedsdr.config import load_config

    folder = tmp_path_factory.mktemp("half")
    (folder / "config.toml").write_text(
        f"""
        [model]
        name = "{model_folder}"
        dtype = "fp32"
        [data]
        clients = "{data_folder}"
        max_length = 128
        [algorithm]
        name = "fedavgm"
        [federation]
        rounds = 1
        update_dtype = "bf16"
        [train]
        local_epochs = 1
        batch_size = 4
        pack_tokens = 512
        [lora]
        rank = 2
        [teacher]
        engine = "transformers"
        max_new_tokens = 6
        filter = "none"
        cache = "{folder / "cache"}"
        [evaluation]
        max_new_tokens = 4
        """
    )
    config = load_config(folder / "config.toml")
    run_experiment(config, folder / "run", SILENT)
    return folder / "run", load_config(folder / "config.toml", ["federation.rounds=2"])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 0x10
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("file", STATE)
@pytest.mark.parametrize("damage", [flip, truncate], ids=["one bit", "truncated"])
def test_a_damaged_file_of_state_ends_the_resumed_run_with_its_name(half, file, damage, tmp_path):
    folder, more = half
    shutil.copytree(folder, tmp_path / "run")
    damage(tmp_path / "run" / file)
    with pytest.raises(UserError) as error:
        run_experiment(more, tmp_path / "run", SILENT, resume=True)
    named = tmp_path / "run" / file
    text = str(error.value)
    # A damaged client is a fault of the round, which too few updates then end.
    assert str(named) in text or str(named.parent) in text
    assert "\n" not in text


@pytest.mark.parametrize("file", [f for f in STATE if f != "config.toml"])
def test_a_file_of_state_that_is_gone_is_named(half, file, tmp_path):
    folder, more = half
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / file).unlink()
    with pytest.raises(UserError, match=r"missing|cannot be read"):
        run_experiment(more, tmp_path / "run", SILENT, resume=True)


def test_a_lost_private_adapter_never_scores_as_the_global_model(half, tmp_path):
    folder, _ = half
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run/clients/bank/round-0001/adapter_model.safetensors").unlink()
    for seal in (tmp_path / "run/clients/bank/round-0001").glob("manifest.*"):
        seal.unlink()  # as an older version
    runtime, state = open_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"bank/round-0001.*lacks"):
        evaluate_clients(runtime, load_clients(runtime.config.data), state, SILENT)


def test_a_password_of_an_endpoint_is_never_written_and_not_missed_when_resumed(tmp_path):
    from dataclasses import replace

    from fedsdr.config import Config, load_config, save_config
    from fedsdr.runs.run_folder import checked_config

    plain = Config()
    url = "http://user:secret-word@localhost:8000/v1"
    config = replace(plain, teacher=replace(plain.teacher, url=url))
    save_config(config, tmp_path / "config.toml")
    assert "secret-word" not in (tmp_path / "config.toml").read_text()
    assert load_config(tmp_path / "config.toml").teacher.url == "http://localhost:8000/v1"
    assert checked_config(config, tmp_path, resume=True).teacher.url == url
