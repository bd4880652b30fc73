"""The losses of phases against their definitions over full distributions, and the token mask."""

import math
import shutil
from dataclasses import replace

import pytest
import torch
from tiny import SIZES, branched, rows, tiny_llama
from torch.nn import functional
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM

from fedsdr.config import LoraConfig
from fedsdr.errors import UserError
from fedsdr.models import chunked_losses
from fedsdr.models.fast_path import prepare
from fedsdr.models.packing import row_losses
from fedsdr.models.two_branch import BranchedModel
from fedsdr.training.client_store import ClientStore
from fedsdr.training.client_update import client_update
from fedsdr.training.local_training import ClientRows
from fedsdr.training.losses import anchored, distilled
from fedsdr.training.pack_losses import pack_loss
from fedsdr.training.references import base_states, states_of, without_unlikely
from fedsdr.types import ClientTask, LocalSettings, TokenRow

DATA = rows(5, seed=3)
SETTINGS = LocalSettings(pack_tokens=40)


def store_at(path):
    return ClientStore(path / "bank", LoraConfig(alpha=8), base_name="tiny")


def logits_in_fp64(model, row, *branches):
    """The logits that predict the supervised tokens of one row, and these tokens."""
    with model.using(*branches), torch.no_grad():
        logits = model.model(input_ids=torch.tensor([row.tokens])).logits[0, :-1].double()
    at = torch.tensor(row.supervised[1:])
    return logits[at], torch.tensor(row.tokens[1:])[at]


def gradients(model, loss, *forward):
    """The loss, and the gradient of R, with these branches in the forward."""
    with model.using(*forward, trained="R"):
        value = loss(DATA)
        value.backward()
        found = {name: p.grad.clone() for name, p in model.parameters("R").items()}
    return float(value.detach()), found


def assert_same(found, wanted, rtol=1e-4):
    assert found[0] == pytest.approx(wanted[0], rel=rtol)
    for name, gradient in wanted[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-4)


def through_full_logits(model, target_of, extra=lambda q: 0.0):
    """The loss -sum target log q over full distributions in fp64, row by row."""

    def loss(data):
        total = 0.0
        for row in data:
            logits = model.model(input_ids=torch.tensor([row.tokens])).logits[0, :-1].double()
            q = functional.log_softmax(logits[torch.tensor(row.supervised[1:])], -1)
            total = total - (target_of(row) * q).sum()
        return total

    return loss


@pytest.mark.parametrize("beta", [0.5, 7.0])
@pytest.mark.parametrize("chunk", [1, 10**9])
def test_the_anchored_loss_and_its_gradient_are_those_of_the_tilted_seed_distribution(
    beta, chunk, monkeypatch, tmp_path
):
    monkeypatch.setattr(chunked_losses, "CHUNK_BYTES", chunk)
    model, plain = branched(tiny_llama()), branched(tiny_llama(packed=False))

    def target_of(row):
        logits, labels = logits_in_fp64(plain, row)
        tilted = functional.log_softmax(logits, -1) + beta * functional.one_hot(labels, 384)
        return tilted.softmax(-1)

    targets = {row: target_of(row) for row in DATA}
    wanted = gradients(plain, through_full_logits(plain, targets.__getitem__), "R")
    states = base_states(model, DATA, 40, store_at(tmp_path))
    settings = replace(SETTINGS, anchor_beta=beta)
    assert_same(gradients(model, pack_loss(anchored, model, states, settings), "R"), wanted)


def test_with_beta_0_the_target_is_the_seed_model_and_with_a_large_beta_the_loss_is_plain(tmp_path):
    model, plain = branched(tiny_llama()), branched(tiny_llama(packed=False))
    states = base_states(model, DATA, 40, store_at(tmp_path))

    def loss_at(beta):
        return pack_loss(anchored, model, states, replace(SETTINGS, anchor_beta=beta))

    # Without branches q = p0, where the gradient of CE(p0, q) is zero and its value an entropy.
    for p in model.parameters("R").values():
        if p.shape[0] != 4:  # B
            p.data.zero_()
    entropy = sum(
        float(torch.distributions.Categorical(logits=logits_in_fp64(plain, row)[0]).entropy().sum())
        for row in DATA
    )
    value, found = gradients(model, loss_at(0.0), "R")
    assert value == pytest.approx(entropy, rel=1e-5)
    assert all(float(g.abs().max()) < 1e-4 for g in found.values())
    wanted = gradients(model, lambda data: row_losses(model.model, data).sum(), "R")
    assert_same(gradients(model, loss_at(60.0), "R"), wanted)


def test_the_distilled_loss_is_cross_entropy_and_torchs_kl_div_to_the_teacher():
    model, plain = branched(tiny_llama()), branched(tiny_llama(packed=False))
    teachers = {
        row: functional.log_softmax(logits_in_fp64(plain, row, "R", "S")[0], -1) for row in DATA
    }

    def loss(data):
        total = 0.0
        for row in data:
            logits = plain.model(input_ids=torch.tensor([row.tokens])).logits[0, :-1].double()
            at = torch.tensor(row.supervised[1:])
            q, labels = functional.log_softmax(logits[at], -1), torch.tensor(row.tokens[1:])[at]
            kl = functional.kl_div(q, teachers[row], reduction="sum", log_target=True)
            total = total + functional.nll_loss(q, labels, reduction="sum") + 0.3 * kl
        return total

    wanted = gradients(plain, loss, "R")
    states = states_of(model, DATA, 40, "R", "S")
    settings = replace(SETTINGS, distill_weight=0.3)
    assert_same(gradients(model, pack_loss(distilled, model, states, settings), "R"), wanted)


@pytest.mark.parametrize(
    ("config", "kind", "changes"),
    [
        (Gemma2Config, Gemma2ForCausalLM, {"final_logit_softcapping": 3.0, "head_dim": 8}),
        (CohereConfig, CohereForCausalLM, {"logit_scale": 0.3}),
    ],
)
def test_heads_that_cap_or_scale_their_logits_have_the_same_losses(config, kind, changes):
    torch.manual_seed(0)
    made = kind(config(**SIZES, **changes, initializer_range=0.3)).eval()
    prepare(made)
    model = branched(made)
    states = states_of(model, DATA, 40)
    plain = gradients(model, lambda data: row_losses(model.model, data).sum(), "R")
    loss = pack_loss(anchored, model, states, replace(SETTINGS, anchor_beta=60.0))
    assert_same(gradients(model, loss, "R"), plain)


def test_a_head_of_an_unknown_kind_is_refused_in_one_line():
    model = branched(tiny_llama())
    head = model.model.get_output_embeddings()
    model.model.forward_plan = replace(model.model.forward_plan, plain_head=False)
    head.register_forward_hook(lambda module, args, out: out if out.dim() == 2 else out.square())
    with pytest.raises(UserError, match=r"no known function of its last hidden states"):
        states_of(model, DATA, 40)


def test_a_token_whose_perplexity_under_the_base_is_too_high_does_not_count(tmp_path):
    model, plain = branched(tiny_llama()), tiny_llama(packed=False)
    data = [replace(row, id=str(i)) for i, row in enumerate(DATA)]
    perplexities = {}
    for row in data:
        logits = plain(input_ids=torch.tensor([row.tokens])).logits[0, :-1]
        losses = functional.cross_entropy(logits, torch.tensor(row.tokens[1:]), reduction="none")
        perplexities[row.id] = [0.0, *losses.exp().tolist()]
    middle = sorted(p for of in perplexities.values() for p in of)[45]
    masked = without_unlikely(model, data, middle, 40, store_at(tmp_path))
    assert [row.tokens for row in masked] == [row.tokens for row in data]
    for row, before in zip(masked, data, strict=True):
        likely = [p <= middle for p in perplexities[row.id]]
        wanted = [a and b for a, b in zip(before.supervised, likely, strict=True)]
        assert list(row.supervised) == wanted
    assert 0 < sum(sum(row.supervised) for row in masked) < sum(sum(r.supervised) for r in data)


def test_a_mask_that_leaves_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"raise train\.mask_perplexity"):
        without_unlikely(branched(tiny_llama()), DATA, 1.0, 40, store_at(tmp_path))


def test_what_the_base_says_is_read_once_and_damage_is_named(tmp_path):
    model, store = branched(tiny_llama()), store_at(tmp_path)
    first = base_states(model, DATA, 40, store)
    assert sum(map(len, first.values())) == sum(sum(row.supervised[1:]) for row in DATA)
    for parameter in model.model.parameters():
        parameter.data.fill_(math.nan)  # another reading would show it
    again = base_states(model, DATA, 40, store)
    assert all(torch.equal(first[row], again[row]) for row in first)
    (path,) = store.folder.glob("base-states-*/kept.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with pytest.raises(UserError, match="damaged"):
        base_states(model, DATA, 40, store)


def test_other_rows_have_readings_of_their_own(tmp_path):
    model, store = branched(tiny_llama()), store_at(tmp_path)
    base_states(model, DATA, 40, store)
    other = [TokenRow("x", (5, 6, 7), (False, True, True))]
    assert list(base_states(model, other, 40, store)) == other


def test_the_base_reads_once_a_client_and_a_teacher_in_every_round(tmp_path):
    model = BranchedModel(tiny_llama(), rank=4, alpha=8, target_modules=["q_proj"])
    tokens = sum(len(row.tokens) for row in DATA)
    shared = model.initial("R", 5)
    settings = replace(SETTINGS, local_epochs=1, batch_size=4, lr=1e-2, mask_perplexity=1e3)
    for method, phase, by_round in (
        ("anchored", "R.raw.anchored", [tokens, None]),
        ("masked", "R.masked", [tokens, None]),
        ("fedsdr-down", "R.raw.distilled", [tokens, tokens]),
        ("fedsdr", "R.raw", [None, None]),
    ):
        store, data = store_at(tmp_path / method), ClientRows(tuple(DATA), tuple(DATA))
        task = ClientTask(1, "bank", 11, shared, {}, replace(settings, method=method))
        first = client_update(task, data, model, store).metrics
        second = client_update(replace(task, round=2, accepted_round=1), data, model, store).metrics
        found = [metrics.get(f"{phase}.forward_tokens") for metrics in (first, second)]
        assert found == by_round, method


def test_a_lost_reading_of_the_base_changes_no_byte_of_the_next_update(tmp_path):
    model = BranchedModel(tiny_llama(), rank=4, alpha=8, target_modules=["q_proj"])
    store, data = store_at(tmp_path), ClientRows(tuple(DATA), tuple(DATA))
    settings = replace(SETTINGS, method="anchored", local_epochs=1, batch_size=4, lr=1e-2)
    task = ClientTask(1, "bank", 11, model.initial("R", 5), {}, settings)
    client_update(task, data, model, store)
    task = replace(task, round=2, accepted_round=1)
    kept = client_update(task, data, model, store).delta
    for folder in store.folder.glob("base-*"):
        shutil.rmtree(folder)
    anew = client_update(task, data, model, store).delta
    assert all(torch.equal(kept[name], anew[name]) for name in kept)
