"""The same round over Flower's messages, on a grid in this process."""

import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("flwr")

from fake_grid import NAMES, checkpoint_of, records_of

from fedsdr.data.clients import load_clients
from fedsdr.flower import client_app
from fedsdr.models.adapters import load_adapter
from fedsdr.progress import SILENT
from fedsdr.runs.run import run_experiment
from fedsdr.types import ClientFault


def without_times(client):
    return {key: value for key, value in client.items() if not key.endswith("seconds")}


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("algorithm.name=scaffold", "federation.update_dtype=int8"),
        ("method.name=anchored", "algorithm.name=fedprox"),
        ("method.name=plain", "algorithm.name=fedadam", "federation.clients_per_round=2"),
        ("algorithm.aggregation=share-a", "algorithm.name=fedavgm"),
        ("method.name=plain", "algorithm.aggregation=product", "clients.bank.rank=1"),
        ("method.name=plain", "algorithm.aggregation=multi-krum", "algorithm.name=fedyogi"),
    ],
)
def test_three_sites_produce_the_bytes_of_one_process(overrides, write_config, tmp_path, deploy):
    config = write_config("federation.rounds=2", *overrides)
    run_experiment(config, tmp_path / "one", SILENT)
    state, _ = deploy(config)
    assert state.round == 2
    assert checkpoint_of(tmp_path / "server") == checkpoint_of(tmp_path / "one")
    for name in NAMES:
        own = tmp_path / "one/clients" / name
        for path in own.rglob("*.safetensors"):
            there = tmp_path / "sites" / name / "trial" / name / "clients" / name
            assert (there / path.relative_to(own)).read_bytes() == path.read_bytes()
    pairs = zip(records_of(tmp_path / "one"), records_of(tmp_path / "server"), strict=True)
    for one, other in pairs:
        assert one["refused"] == other["refused"] == []
        assert one["step_norm"] == other["step_norm"]
        assert [*map(without_times, one["clients"])] == [*map(without_times, other["clients"])]


def secrets_of(sites, config):
    """Return name -> bytes of what must never be sent: every row of S in any dtype, and all
    texts."""
    secret = {}
    for folder in sites.glob("*/trial/*/clients/*/round-*"):
        for name, value in load_adapter(folder, "S").items():
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                rows = value.to(dtype).contiguous().view(torch.uint8)
                # A B of zeros is not a secret, and half a row reveals as much as all of it.
                secret |= {
                    f"S: {folder} {name} row {i} as {dtype}": bytes(row[: len(row) // 2].tolist())
                    for i, row in enumerate(rows)
                    if row.any() and len(row) >= 16
                }
    texts = {
        text
        for client in load_clients(config.data)
        for e in (*client.raw, *client.test)
        for text in (e.instruction, e.response)
    }
    for path in sites.glob("*/trial/*/distilled/*.jsonl"):
        texts |= {json.loads(line)["rewrite"] for line in path.read_text().splitlines()}
    return secret | {f"text {text!r}": text.encode() for text in texts if len(text) >= 8}


LEAKS = {
    "nothing": lambda update, s: update,
    "S as a tensor": lambda update, s: replace(update, delta={**update.delta, **s}),
    "S in place of R": lambda update, s: replace(
        update, delta={n: s[n.replace("R/", "S/", 1)].clone() for n in update.delta}
    ),
    "a sentence": lambda update, s: ClientFault(
        update.client_id, update.round, "the loan has a rate of 3 percent a year"
    ),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_neither_s_nor_text_is_in_any_message(leak, write_config, tmp_path, deploy, monkeypatch):
    real, sites = client_app.train_at, tmp_path / "sites"

    def train(runtime, client, task, *rest):
        update = real(runtime, client, task, *rest)
        s = load_adapter(runtime.store(client.client_id).folder, "S")
        return LEAKS[leak](update, s) if client.client_id == "bank" else update

    monkeypatch.setattr(client_app, "train_at", train)
    config = write_config("federation.rounds=2", "teacher.max_new_tokens=24")
    _, grid = deploy(config)
    secret = secrets_of(sites, config)
    assert sum(name.startswith("S: ") for name in secret) > 100
    assert sum(name.startswith("text") for name in secret) > 3 * 10 * 2  # rewrites, too
    assert len(grid.wire) == 2 * 3 * (1 + 1 + 2)  # both ways: join, rewrite, two rounds
    found = [name for name, value in secret.items() if any(value in b for b in grid.wire)]
    assert bool(found) == (leak != "nothing"), found[:5]
    # The server keeps none of it either, unless a client sends S under the names of R.
    kept = (tmp_path / "server/checkpoint/round-0002/shared.safetensors").read_bytes()
    assert not any(value in kept for value in secret.values())
    assert "the loan" not in (tmp_path / "server/rounds.jsonl").read_text() or leak == "a sentence"
