"""fedsdr's work at the sites of another program's federation, and the recipe for NVFlare."""

import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fedsdr
from fedsdr.config import save_config
from fedsdr.data.clients import load_clients
from fedsdr.federation.checkpoint import load_state
from fedsdr.models.adapters import load_adapter
from fedsdr.progress import SILENT
from fedsdr.runs.run import run_experiment
from fedsdr.tensors import WeightedMean, add

ROOT = Path(__file__).parents[1]
NAMES = ("bank", "clinic", "school")


def private_files(clients: Path) -> dict[str, bytes]:
    """Return what a client keeps after each round."""
    return {
        str(path.relative_to(clients)): path.read_bytes()
        for path in clients.glob("*/round-*/*.safetensors")
    }


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("method.name=feddpa", "algorithm.name=fedprox", "federation.update_dtype=int8"),
        ("method.name=fedsd", "teacher.refresh=1"),
    ],
)
def test_a_plain_weighted_mean_over_the_sites_gives_the_bytes_of_a_run(
    overrides, write_config, data_folder, tmp_path
):
    config = write_config("federation.rounds=2", "evaluation.retention=false", *overrides)
    run_experiment(config, tmp_path / "one", SILENT)
    shared = fedsdr.initial_tensors(config)
    with ExitStack() as stack:
        sites = {
            name: stack.enter_context(
                fedsdr.open_site(config, name, data_folder, tmp_path / "sites" / name)
            )
            for name in NAMES
        }
        for number in (1, 2):
            mean = WeightedMean()
            for site in sites.values():
                update = site.update(number, shared)
                mean.add(update.delta, update.num_examples)
            shared = add(shared, mean.result())
    expected = load_state(tmp_path / "one/checkpoint").shared
    assert shared.keys() == expected.keys()
    assert all(torch.equal(shared[name], expected[name]) for name in expected)
    kept = {}
    for name in NAMES:
        kept |= private_files(tmp_path / "sites" / name / "clients")
    assert kept == private_files(tmp_path / "one/clients")


@pytest.fixture
def opened(write_config, data_folder, tmp_path):
    """Return a function that opens the bank's site, again and again in one folder."""

    def open_bank(*overrides: str):
        config = write_config("method.name=dual-raw", "federation.rounds=3", *overrides)
        return fedsdr.open_site(config, "bank", data_folder, tmp_path / "site"), config

    return open_bank


@pytest.mark.parametrize(
    ("override", "instead"),
    [
        ("algorithm.name=fedyogi", "fedavg, fedprox"),
        ("algorithm.name=scaffold", "fedavg, fedprox"),
        ("algorithm.aggregation=median", "mean"),
        ("privacy.mode=central", "none, local"),
        ("method.name=local", "plain, fedsd"),
        ("method.name=plain-personal", "plain, fedsd"),
    ],
)
def test_what_only_a_server_of_fedsdr_does_is_refused_before_anything_is_written(
    override, instead, opened, tmp_path
):
    site, _ = opened(override)
    key, _, value = override.partition("=")
    expected = f"^{key}: '{value}' needs a server of fedsdr; use one of {instead}"
    with pytest.raises(fedsdr.UserError, match=expected), site:
        pass
    assert not (tmp_path / "site").exists()


def test_a_repeated_round_gives_the_same_update_in_a_new_process_of_the_site(opened):
    site, config = opened()
    start = fedsdr.initial_tensors(config)
    with site as bank:
        bank.update(1, start)
        first = bank.update(2, start)
    with opened()[0] as bank:
        again = bank.update(2, start)
    assert all(torch.equal(first.delta[name], again.delta[name]) for name in start)
    assert any(value.any() for value in first.delta.values())


def test_tensors_and_rounds_of_another_job_are_refused(opened):
    site, config = opened()
    start = fedsdr.initial_tensors(config)
    other = fedsdr.initial_tensors(replace(config, lora=replace(config.lora, rank=3)))
    with site as bank:
        with pytest.raises(fedsdr.UserError, match=r"^shared tensors: .*has shape \(3, "):
            bank.update(1, other)
        bank.update(2, start)
        with pytest.raises(fedsdr.UserError, match="round 1 is asked for after round 2 of 3"):
            bank.update(1, start)
        with pytest.raises(fedsdr.UserError, match="round 4 is asked for after round 2 of 3"):
            bank.update(4, start)


def test_one_round_in_the_simulator_of_nvflare_gives_the_adapter_of_a_run(
    write_config, data_folder, tmp_path
):
    """It takes half a minute: NVFlare starts a process a site, and each loads torch."""
    pytest.importorskip("nvflare", reason="pip install nvflare, see docs/nvflare.md")
    rows = tmp_path / "rows"
    rows.mkdir()
    for name, count in (("bank", 10), ("clinic", 7)):  # their weights differ
        lines = (data_folder / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (rows / f"{name}.jsonl").write_text("".join(lines[:count]))
    config = write_config("federation.rounds=1", f"data.clients={rows}")
    save_config(config, tmp_path / "study.toml")
    run_experiment(config, tmp_path / "one", SILENT)

    def run(script: str, *arguments: object) -> None:
        done = subprocess.run(
            [sys.executable, ROOT / "examples/nvflare" / script, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    places = ("--data", rows, "--state-dir", tmp_path / "state", "--simulate", "out")
    run("job.py", "study.toml", "--sites", "bank", "clinic", *places)
    [saved] = (tmp_path / "out").rglob("FL_global_model.pt")
    run("adapter.py", "study.toml", saved, "adapter")
    ours, theirs = (load_adapter(tmp_path / name, "R") for name in ("one/global", "adapter"))
    start = fedsdr.initial_tensors(config)
    assert ours.keys() == theirs.keys() == start.keys()
    for name, value in ours.items():  # NVFlare sums in fp32, in the order of arrival
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=1e-6)
        assert not torch.allclose(value, start[name], rtol=0, atol=1e-4)
    kept = {}
    for name in ("bank", "clinic"):
        kept |= private_files(tmp_path / "state/simulate_job" / name / "clients")
    assert kept == private_files(tmp_path / "one/clients")
    assert len(kept) == 2  # S of each
    # Of a site, NVFlare's folders have the change of R alone.
    secrets = [row.response.encode() for client in load_clients(config.data) for row in client.raw]
    for path in (tmp_path / "state").rglob("round-*"):
        s = load_adapter(path, "S").values()
        secrets += [bytes(x.view(torch.uint8).flatten().tolist()) for x in s]
    written = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert len(secrets) > 15
    assert not any(secret in written for secret in secrets)
