"""What a client trains, sends and keeps where the aggregation is about a part of the factors."""

from dataclasses import replace

import pytest
import torch
from tiny import rows, tiny_llama

from fedsdr.algorithms.product_aggregation import leading_part
from fedsdr.config import LoraConfig
from fedsdr.models.two_branch import BranchedModel
from fedsdr.tensors import Tensors
from fedsdr.training.client_store import ClientStore
from fedsdr.training.client_update import client_update
from fedsdr.training.local_training import ClientRows
from fedsdr.types import ClientTask, LocalSettings

DATA = ClientRows(tuple(rows(8, seed=1)), tuple(rows(8, seed=2)))
SETTINGS = LocalSettings(local_epochs=2, batch_size=4, lr=1e-2, start_seed=5)


def model_of(rank: int, alpha: float) -> BranchedModel:
    return BranchedModel(tiny_llama(), rank=rank, alpha=alpha, target_modules=["q_proj", "v_proj"])


@pytest.fixture
def model():
    return model_of(4, 8)


def task_for(shared: Tensors, round: int = 1, **changes) -> ClientTask:
    return ClientTask(round, "bank", 11, shared, {}, replace(SETTINGS, **changes), round - 1)


def some(model, ending):
    return {n: x for n, x in model.initial("R", 5).items() if n.endswith(ending)}


def store_at(path):
    return ClientStore(path / "bank", LoraConfig(alpha=8), base_name="tiny")


@pytest.mark.parametrize("method", ["plain", "fedsdr"])
def test_with_ffa_a_keeps_its_common_start_and_b_alone_is_sent(method, model, tmp_path):
    model.set({n: x + 1 for n, x in model.get("R").items()})  # what another client left behind
    task = task_for(some(model, "lora_B"), method=method, aggregation="ffa")
    update = client_update(task, DATA, model, store_at(tmp_path))
    assert update.delta.keys() == task.shared.keys()
    assert all(x.any() for x in update.delta.values())
    after = model.get("R")
    for name, start in some(model, "lora_A").items():
        assert torch.equal(after[name], start)
    private = model.get("S")
    assert method == "plain" or all(private[n].any() for n in private)  # S trains both factors


def test_with_share_a_b_stays_in_the_clients_folder_and_goes_on_from_there(model, tmp_path):
    store = store_at(tmp_path)
    shared = some(model, "lora_A")
    update = client_update(
        task_for(shared, method="plain", aggregation="share-a"), DATA, model, store
    )
    assert update.delta.keys() == shared.keys()
    kept = store.load(1).unsent
    assert kept.keys() == some(model, "lora_B").keys()
    assert all(torch.equal(kept[n], model.get("R")[n]) and kept[n].any() for n in kept)
    seen = []

    def look(rows, tokens):
        seen.append(model.get("R"))

    model.set({n: x + 1 for n, x in model.get("R").items()})
    still = replace(SETTINGS, lr=1e-9)
    task = task_for(shared, 2, method="plain", aggregation="share-a", lr=still.lr)
    client_update(task, DATA, model, store, look)
    for name, x in kept.items():
        torch.testing.assert_close(seen[0][name], x)
    for name, x in shared.items():
        torch.testing.assert_close(seen[0][name], x)


@pytest.mark.parametrize("correction", ["none", "fedprox"])
def test_a_client_of_a_smaller_rank_trains_as_in_a_model_of_that_rank(correction, model, tmp_path):
    full = {n: torch.randn(x.shape, generator=torch.Generator().manual_seed(3)) * 0.1
            for n, x in model.initial("R", 5).items()}  # fmt: skip
    part = leading_part(full, 2)
    changes = {"method": "plain", "aggregation": "product", "correction": correction}
    wide = client_update(task_for(part, **changes), DATA, model, store_at(tmp_path / "wide"))
    small = model_of(2, 4)  # the same alpha / rank
    narrow = client_update(task_for(part, **changes), DATA, small, store_at(tmp_path / "narrow"))
    for name, x in narrow.delta.items():
        assert wide.delta[name].shape == part[name].shape
        torch.testing.assert_close(wide.delta[name], x, rtol=1e-3, atol=1e-5)
    for name, x in model.get("R").items():
        rest = x[2:] if name.endswith("lora_A") else x[:, 2:]
        assert not rest.any()
