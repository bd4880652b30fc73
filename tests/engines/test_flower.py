"""The same round over Flower's messages, on a grid in this process."""

import dataclasses
import json

import pytest
import torch

flwr = pytest.importorskip("flwr")

from fake_grid import FakeGrid  # noqa: E402

from fedsdr.engines.experiment import run_experiment  # noqa: E402
from fedsdr.engines.flower import client_app, server_app  # noqa: E402
from fedsdr.engines.flower.run_config import to_run_config  # noqa: E402
from fedsdr.engines.progress import SILENT  # noqa: E402

NAMES = ("bank", "clinic", "school")


@pytest.fixture(autouse=True)
def _quick_and_fresh(monkeypatch):
    """No wait between polls, and no site that another test has opened."""
    monkeypatch.setattr("fedsdr.engines.flower.asking.POLL_SECONDS", 0.001)
    monkeypatch.setattr("fedsdr.engines.flower.server_app.POLL_SECONDS", 0.001)
    for opened in (client_app._held, client_app._all_clients, client_app._site):
        opened.cache_clear()


@pytest.fixture
def deploy(tmp_path, data_folder):
    """Return a function that runs a configuration over three sites, and the grid that did it."""

    def run(config, out=tmp_path / "server", sites=tmp_path / "sites", **grid):
        engine = dataclasses.replace(config.engine, sites=3, join_seconds=1, round_seconds=1)
        config = dataclasses.replace(config, engine=engine)
        nodes = {
            100 + i: {
                "client": name,
                "data": str(data_folder / f"{name}.jsonl"),
                "state-dir": str(sites / name),
            }
            for i, name in enumerate(NAMES)
        }
        run_config = to_run_config(config) | {"out": str(out), "experiment": "trial"}
        over = FakeGrid(client_app.app, nodes, run_config, **grid)
        state = server_app.serve(
            over, config, out, SILENT, rewriting=config.method.name == "fedsdr"
        )
        return state, over

    return run


def records_of(out):
    return [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("algorithm.name=scaffold", "federation.update_dtype=int8"),
        ("method.name=plain", "algorithm.name=fedadam", "federation.clients_per_round=2"),
    ],
)
def test_three_sites_come_to_the_bytes_of_one_process(overrides, write_config, tmp_path, deploy):
    config = write_config("federation.rounds=2", *overrides)
    run_experiment(config, tmp_path / "one", SILENT)
    state, _ = deploy(config)
    assert state.round == 2
    for path in sorted((tmp_path / "one" / "checkpoint").rglob("*")):
        if path.is_file():
            there = tmp_path / "server" / path.relative_to(tmp_path / "one")
            assert there.read_bytes() == path.read_bytes(), path
    for name in NAMES:
        own = tmp_path / "one/clients" / name
        for path in own.rglob("*.safetensors"):
            there = tmp_path / "sites" / name / "trial" / name / "clients" / name
            assert (there / path.relative_to(own)).read_bytes() == path.read_bytes()
    ours, theirs = records_of(tmp_path / "one"), records_of(tmp_path / "server")
    timed = ("seconds",)
    for one, other in zip(ours, theirs, strict=True):
        assert one["refused"] == other["refused"] == []
        assert one["step_norm"] == other["step_norm"]
        for a, b in zip(one["clients"], other["clients"], strict=True):
            assert {k: v for k, v in a.items() if not k.endswith(timed)} == {
                k: v for k, v in b.items() if not k.endswith(timed)
            }
    assert torch.is_tensor(next(iter(state.shared.values())))
