"""Clients that are trained at once get what each gets alone."""

from dataclasses import replace

import pytest
import torch
from tiny import branched, rows, tiny_llama

from fedsdr.algorithms import ALGORITHMS
from fedsdr.config import LoraConfig
from fedsdr.errors import Refusal
from fedsdr.models.checkpointing import checkpoint_layers
from fedsdr.tensors import zeros_like
from fedsdr.training.client_store import ClientStore
from fedsdr.training.client_update import client_training, client_update
from fedsdr.training.local_training import ClientRows
from fedsdr.training.methods import METHODS
from fedsdr.training.side_by_side import train_side_by_side
from fedsdr.types import ClientTask, ClientUpdate, LocalSettings, TokenRow

NAMES = ("bank", "clinic", "school")
# Clients of different sizes: they take different numbers of steps and of packs.
ROWS = [ClientRows(tuple(rows(n, seed=n)), tuple(rows(n, seed=n + 50))) for n in (3, 7, 4)]
CORRECTIONS = sorted({a.correction for a in ALGORITHMS.values()})


def task_for(model, client, **changes):
    settings = LocalSettings(local_epochs=1, batch_size=3, lr=1e-2, pack_tokens=60)
    settings = replace(settings, **changes)
    sent = METHODS[settings.method].sent
    shared = {name: x for branch in sent for name, x in model.get(branch).items()}
    control = zeros_like(shared) if settings.correction == "scaffold" else {}
    return ClientTask(1, client, 3, shared, control, settings)


def updates_of(path, at_once, model=None, **changes):
    """Train the three clients and return their updates or faults, and what each keeps."""
    model = model or branched(tiny_llama(), targets="all-linear")
    stores = [ClientStore(path / name, LoraConfig(alpha=8), "tiny") for name in NAMES]
    tasks = [task_for(model, name, **changes) for name in NAMES]
    if at_once:
        models = [model, *(model.beside() for _ in NAMES[1:])]
        given = zip(tasks, ROWS, models, stores, strict=True)
        found = train_side_by_side([client_training(*one) for one in given], models)
    else:
        given = zip(tasks, ROWS, [model] * 3, stores, strict=True)
        found = [client_update(*one) for one in given]
    kept = [store.load(1) if store.newest() else None for store in stores]
    return found, kept


def assert_near(tensors, expected, tolerance=1e-5):
    assert tensors.keys() == expected.keys()
    for name, want in expected.items():
        error = (tensors[name] - want).norm() / want.norm().clamp(min=1e-6)
        assert float(error) < tolerance, (name, float(error))


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_each_client_gets_the_update_that_it_gets_alone(method, correction, tmp_path):
    changes = {"method": method, "correction": correction, "s_dropout": 0.5, "lr": 1e-4}
    changes["mask_perplexity"] = 1e3  # of a random model
    together, kept = updates_of(tmp_path / "together", True, **changes)
    alone, expected = updates_of(tmp_path / "alone", False, **changes)
    for one, want, own, own_want in zip(together, alone, kept, expected, strict=True):
        # AdamW divides by the gradient's size: where that is near 0, rounding decides the step.
        assert_near(one.delta, want.delta, 2e-3)
        assert_near(one.control_delta, want.control_delta, 2e-3)
        if own_want:
            assert_near(own.private, own_want.private, 1e-4)
        for key, value in want.metrics.items():
            if not key.endswith("seconds"):
                assert one.metrics[key] == pytest.approx(value, rel=1e-5), key


def test_the_gradient_of_a_client_does_not_depend_on_those_beside_it():
    from fedsdr.training.optimizer_step import Step, accumulate_gradients
    from fedsdr.training.side_by_side import _gradients

    model = branched(tiny_llama(), targets="all-linear")
    models = [model, model.beside(), model.beside()]
    generator = torch.Generator().manual_seed(5)
    for other in models[1:]:
        other.set({n: 0.2 * torch.randn(p.shape, generator=generator)
                   for n, p in other.factors.items()})  # fmt: skip
    uses = [(("R", "S"), "R", 0.3), (("R",), "R", 0.0), (("R", "S"), "S", 0.3)]
    data = [own.raw for own in ROWS]

    def gradients(compute):
        found = {}
        for i, (forward, trained, dropout) in enumerate(uses):
            seeded = torch.Generator().manual_seed(i)
            found[i] = models[i].using(*forward, trained=trained, dropout=dropout, generator=seeded)
            found[i].__enter__()
        steps = {i: Step(tuple(models[i].parameters(uses[i][1]).values()), data[i], 60)
                 for i in range(3)}  # fmt: skip
        sums = compute(steps)
        grads = [[p.grad.clone() for p in step.parameters] for step in steps.values()]
        for using in found.values():
            using.__exit__(None, None, None)
        return sums, grads

    def alone(steps):
        sums = {}
        for i, step in steps.items():
            with models[i].running():
                sums[i] = accumulate_gradients(model.model, step.parameters, step.rows, 60)
        return sums

    sums, grads = gradients(lambda steps: _gradients(steps, models))
    expected_sums, expected = gradients(alone)
    for i in range(3):
        assert sums[i] == (pytest.approx(expected_sums[i][0], rel=1e-5), expected_sums[i][1])
        for grad, want in zip(grads[i], expected[i], strict=True):
            assert float((grad - want).norm()) <= 1e-5 * float(want.norm())


def test_the_same_clients_at_once_give_the_same_bytes(tmp_path):
    first, _ = updates_of(tmp_path / "a", True)
    again, _ = updates_of(tmp_path / "b", True)
    for one, other in zip(first, again, strict=True):
        assert all(torch.equal(one.delta[name], other.delta[name]) for name in one.delta)


def test_activation_checkpointing_changes_no_bit(tmp_path):
    plain, _ = updates_of(tmp_path / "a", True)
    model = branched(tiny_llama(), targets="all-linear")
    checkpoint_layers(model.model, model.generators)
    saved, _ = updates_of(tmp_path / "b", True, model)
    for one, other in zip(plain, saved, strict=True):
        assert all(torch.equal(one.delta[name], other.delta[name]) for name in one.delta)


def test_local_noise_and_clipping_work_as_for_one_client(tmp_path):
    found, _ = updates_of(tmp_path, True, clip_norm=0.5, local_noise=1e-9)
    for update in found:
        assert update.num_examples == 1
        assert update.metrics == {}
        norm = torch.cat([x.flatten() for x in update.delta.values()]).norm()
        assert float(norm) <= 0.5 + 1e-4


def test_a_client_whose_rows_or_branch_fail_leaves_its_neighbours_alone(tmp_path, monkeypatch):
    outside = TokenRow("bad", (3, 10**6, 4), (True,) * 3)  # no such token
    monkeypatch.setitem(globals(), "ROWS", [ROWS[0], ClientRows((outside,), (outside,)), ROWS[2]])
    together, _ = updates_of(tmp_path / "together", True, lr=1e-4)
    assert isinstance(together[1], IndexError)
    monkeypatch.setitem(globals(), "ROWS", [ROWS[0], ROWS[2], ROWS[2]])
    alone, _ = updates_of(tmp_path / "alone", False, lr=1e-4)
    for i in (0, 2):
        assert isinstance(together[i], ClientUpdate)
        assert_near(together[i].delta, alone[i].delta, 2e-3)


def test_a_client_that_diverges_is_refused_alone(tmp_path):
    model = branched(tiny_llama())
    spoilt = model.get("S")
    next(iter(spoilt.values()))[0, 0] = float("nan")
    stores = [ClientStore(tmp_path / name, LoraConfig(alpha=8), "tiny") for name in NAMES]
    from fedsdr.training.client_store import ClientState

    stores[1].save(1, ClientState(private=spoilt), accepted=0)
    models = [model, model.beside(), model.beside()]
    tasks = [task_for(model, name) for name in NAMES]
    tasks[1] = replace(tasks[1], round=2, accepted_round=1)
    given = zip(tasks, ROWS, models, stores, strict=True)
    found = train_side_by_side([client_training(*one) for one in given], models)
    assert isinstance(found[1], Refusal)
    assert all(torch.isfinite(x).all() for i in (0, 2) for x in found[i].delta.values())
