import shutil
from dataclasses import replace

import pytest
import torch
from tiny import rows, tiny_llama

from fedsdr.algorithms.compression import decode, encode
from fedsdr.config import LoraConfig
from fedsdr.errors import UserError
from fedsdr.models.adapters import load_adapter
from fedsdr.models.packing import row_losses
from fedsdr.models.two_branch import BranchedModel
from fedsdr.seeds import seed_for
from fedsdr.tensors import add, norm, subtract, zeros_like
from fedsdr.training.client_store import ClientStore
from fedsdr.training.client_update import client_update
from fedsdr.training.local_training import ClientRows, phase_rows, rows_to_train
from fedsdr.training.methods import METHODS, Phase
from fedsdr.types import ClientTask, LocalSettings

SETTINGS = LocalSettings(
    local_epochs=2, batch_size=4, lr=1e-2, lora_dropout=0.0, mask_perplexity=1e3
)
DATA = ClientRows(tuple(rows(8, seed=1)), tuple(rows(8, seed=2)))


@pytest.fixture
def model():
    return BranchedModel(tiny_llama(), rank=4, alpha=8, target_modules=["q_proj", "v_proj"])


def task_for(model, method="fedsdr", round=1, accepted=0, **changes):
    sent = METHODS[method].sent
    shared = {n: v for b in sent for n, v in model.initial(b, 5).items()}
    settings = replace(SETTINGS, method=method, **changes)
    control = zeros_like(shared) if settings.correction == "scaffold" else {}
    return ClientTask(round, "bank", 11, shared, control, settings, accepted)


def store_at(path):
    return ClientStore(path / "bank", LoraConfig(alpha=8), base_name="tiny")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_sends_exactly_what_it_shares_and_keeps_what_is_private(name, model, tmp_path):
    method = METHODS[name]
    update = client_update(task_for(model, name), DATA, model, store_at(tmp_path))
    assert {key[0] for key in update.delta} == set(method.sent)
    assert all(torch.isfinite(v).all() for v in update.delta.values())
    if method.sent:
        assert norm(update.delta) > 0
    kept = (tmp_path / "bank" / "adapter_model.safetensors").exists()
    assert kept == (method.private == ("S",))
    # feddpa trains S from a client's second round on.
    trained = {key.split(".")[0] for key in update.metrics}
    expected = {p.train for p in method.phases if not p.returning}
    assert trained == expected
    assert update.num_examples == 8


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("accepted", [0, 1])
def test_the_rows_that_a_task_says_it_will_train_are_those_that_it_trains(
    name, accepted, model, tmp_path
):
    store = store_at(tmp_path)
    if accepted:
        client_update(task_for(model, name), DATA, model, store)
    task = task_for(model, name, round=accepted + 1, accepted=accepted, smooth_epochs=1)
    trained = []
    client_update(task, DATA, model, store, lambda rows, tokens: trained.append(rows))
    assert sum(trained) == rows_to_train(task, 8) > 0


def test_phases_after_the_last_round_train_s_alone_and_send_nothing(model, tmp_path):
    store = store_at(tmp_path)
    task = task_for(model, "plain-personal", round=2, afterwards=True)
    before = {name: value.clone() for name, value in task.shared.items()}
    start = model.initial("S", seed_for(11, "start", "bank"))
    update = client_update(task, DATA, model, store)
    assert update.delta == {}
    assert {key.split(".")[0] for key in update.metrics} == {"S"}
    assert norm(subtract(store.load(2).private, start)) > 0
    assert all(torch.equal(model.get("R")[name], value) for name, value in before.items())


def test_fedsdr_trains_s_on_rewrites_first_and_then_r_on_raw_with_that_s_in_the_forward(
    model, tmp_path
):
    update = client_update(task_for(model), DATA, model, store_at(tmp_path))
    # The two stages by hand, with plain AdamW and the same orders.
    twin = BranchedModel(tiny_llama(), rank=4, alpha=8, target_modules=["q_proj", "v_proj"])
    twin.set(task_for(twin).shared)
    from fedsdr.training.optimizer_step import batches

    twin.set(twin.initial("S", seed_for(11, "start", "bank")))
    start = twin.get("R")
    for trained, data, kind in (("S", DATA.rewritten, "rewritten"), ("R", DATA.raw, "raw")):
        with twin.using("R", "S", trained=trained):
            parameters = list(twin.parameters(trained).values())
            optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
            for _, batch in batches(data, 4, 2, seed_for(11, 1, "bank", trained, kind)):
                optimizer.zero_grad()
                count = sum(sum(row.supervised[1:]) for row in batch)
                (row_losses(twin.model, batch).sum() / count).backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
    after = twin.get("R")
    # AdamW's first steps are nearly signs, so a gradient close to zero may differ: compare norms.
    moved = {name: after[name] - start[name] for name in update.delta}
    assert norm(subtract(update.delta, moved)) < 1e-3 * norm(moved)
    kept = load_adapter(tmp_path / "bank", "S")
    assert norm(subtract(kept, twin.get("S"))) < 1e-3 * norm(kept)


def test_the_same_task_gives_the_same_bytes_whatever_ran_before(model, tmp_path):
    task = task_for(model, lora_dropout=0.1, s_dropout=0.5)
    first = client_update(task, DATA, model, store_at(tmp_path / "a"))
    client_update(task_for(model, "dual-raw"), DATA, model, store_at(tmp_path / "b"))
    again = client_update(task, DATA, model, store_at(tmp_path / "c"))
    assert all(torch.equal(first.delta[n], again.delta[n]) for n in first.delta)
    files = [(tmp_path / x / "bank" / "adapter_model.safetensors").read_bytes() for x in ("a", "c")]
    assert files[0] == files[1]


def test_a_lost_update_is_not_trained_into_s_twice(model, tmp_path):
    """Round 2 was trained but never counted: round 3 goes on from the S of round 1."""
    store = store_at(tmp_path)
    client_update(task_for(model), DATA, model, store)
    s1 = store.load(1).private
    client_update(task_for(model, round=2, accepted=1), DATA, model, store)
    assert not torch.equal(next(iter(store.load(2).private.values())), next(iter(s1.values())))
    after_loss = client_update(task_for(model, round=3, accepted=1), DATA, model, store)
    other = store_at(tmp_path / "other")
    client_update(task_for(model), DATA, model, other)
    without_loss = client_update(task_for(model, round=3, accepted=1), DATA, model, other)
    assert all(
        torch.equal(after_loss.delta[n], without_loss.delta[n]) for n in s1 if n in after_loss.delta
    )
    assert after_loss.delta.keys() == without_loss.delta.keys()
    assert all(torch.equal(after_loss.delta[n], without_loss.delta[n]) for n in after_loss.delta)
    kept = sorted(p.name for p in (tmp_path / "bank").glob("round-*"))
    assert kept == ["round-0001", "round-0003"]


def test_s_is_kept_across_rounds_unless_it_is_reset(model, tmp_path):
    deltas = []
    for reset in (False, True):
        store = store_at(tmp_path / str(reset))
        client_update(task_for(model), DATA, model, store)
        deltas.append(
            client_update(
                task_for(model, round=2, accepted=1, s_reset=reset), DATA, model, store
            ).delta
        )
    name = next(iter(deltas[0]))
    assert not torch.equal(deltas[0][name], deltas[1][name])


def test_a_missing_s_is_an_error_and_not_a_new_start(model, tmp_path):
    with pytest.raises(UserError, match=r"round-0004.*missing"):
        client_update(task_for(model, round=5, accepted=4), DATA, model, store_at(tmp_path))


def test_s_dropout_of_one_trains_r_as_if_there_were_no_s(model, tmp_path):
    beside = client_update(task_for(model, s_dropout=1.0), DATA, model, store_at(tmp_path / "a"))
    alone = client_update(task_for(model, "plain"), DATA, model, store_at(tmp_path / "b"))
    for name in beside.delta:
        torch.testing.assert_close(beside.delta[name], alone.delta[name], rtol=1e-5, atol=1e-8)


def test_fedprox_with_a_huge_mu_holds_the_client_near_the_global_model(model, tmp_path):
    free = client_update(task_for(model, "plain"), DATA, model, store_at(tmp_path))
    held = client_update(
        task_for(model, "plain", correction="fedprox", mu=1e4), DATA, model, store_at(tmp_path)
    )
    assert norm(held.delta) < 0.8 * norm(free.delta)


def test_scaffold_sends_the_change_of_its_control_and_keeps_it(model, tmp_path):
    store = store_at(tmp_path)
    task = task_for(model, "plain", correction="scaffold")
    update = client_update(task, DATA, model, store)
    steps = update.metrics["R.raw.steps"]
    for name, delta in update.delta.items():  # c_k = c = 0: c_k+ = -dR / (steps * lr)
        torch.testing.assert_close(
            update.control_delta[name], -delta / (steps * 1e-2), rtol=1e-5, atol=1e-7
        )
    assert store.load(1).control.keys() == update.control_delta.keys()


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
@pytest.mark.parametrize("name", METHODS)
def test_the_sent_update_and_the_residual_add_up_to_the_change_of_r(name, dtype, model, tmp_path):
    store, exact = store_at(tmp_path), store_at(tmp_path / "exact")
    residual = {}
    for round in (1, 2):
        task = task_for(model, name, round, accepted=round - 1)
        true = client_update(task, DATA, model, exact).delta
        rounded = replace(task, settings=replace(task.settings, update_dtype=dtype))
        update = client_update(rounded, DATA, model, store)
        wanted = add(true, residual) if residual else true
        residual = store.load(round).residual
        sent = encode(wanted, dtype)
        assert sent.keys() == update.delta.keys()
        assert all(torch.equal(sent[n], update.delta[n]) for n in sent)
        assert residual.keys() == true.keys()
        assert all(
            torch.equal(residual[n], wanted[n] - decode(update.delta, wanted, dtype)[n])
            for n in residual
        )
        assert not true or norm(residual) > 0


def test_the_residual_of_a_lost_result_is_not_sent_twice(model, tmp_path):
    """Round 2 was never counted: round 3 adds what the update of round 1 had rounded away."""
    updates = []
    for lost in (True, False):
        store = store_at(tmp_path / str(lost))
        client_update(task_for(model, "plain", update_dtype="int8"), DATA, model, store)
        if lost:
            task = task_for(model, "plain", round=2, accepted=1, update_dtype="int8")
            client_update(task, DATA, model, store)
        task = task_for(model, "plain", round=3, accepted=1, update_dtype="int8")
        updates.append(client_update(task, DATA, model, store).delta)
    assert all(torch.equal(updates[0][n], updates[1][n]) for n in updates[0])


def test_a_missing_residual_is_named(model, tmp_path):
    task = task_for(model, "plain", round=2, accepted=1, update_dtype="bf16")
    with pytest.raises(UserError, match="round-0001: missing"):
        client_update(task, DATA, model, store_at(tmp_path))


def test_a_mixture_has_the_configured_share_of_rewrites_of_distinct_rows():
    mixed = phase_rows(Phase("mixture", ("R",), "R"), DATA, replace(SETTINGS, mixture=0.25), "bank")
    rewritten = [i for i in range(8) if mixed[i] is DATA.rewritten[i]]
    assert len(rewritten) == 2
    assert all(mixed[i] is DATA.raw[i] for i in range(8) if i not in rewritten)


def test_training_on_rewrites_that_were_never_made_is_an_error(model, tmp_path):
    with pytest.raises(ValueError, match="no rewrites"):
        client_update(task_for(model), ClientRows(DATA.raw), model, store_at(tmp_path))


def test_training_lowers_the_loss_of_the_trained_rows(model, tmp_path):
    task = task_for(model, "plain", local_epochs=20)
    short = client_update(
        replace(task, settings=replace(task.settings, local_epochs=1)),
        DATA,
        model,
        store_at(tmp_path),
    )
    long = client_update(task, DATA, model, store_at(tmp_path))
    assert long.metrics["R.raw.loss"] < short.metrics["R.raw.loss"] - 0.1


def test_a_client_clips_what_it_sends_and_reports_the_norm_before(model, tmp_path):
    whole = client_update(task_for(model), DATA, model, store_at(tmp_path / "a"))
    bound = norm(whole.delta) / 3
    clipped = client_update(task_for(model, clip_norm=bound), DATA, model, store_at(tmp_path / "b"))
    assert norm(clipped.delta) == pytest.approx(bound)
    assert clipped.metrics["update.norm"] == pytest.approx(norm(whole.delta))
    for name, value in clipped.delta.items():
        torch.testing.assert_close(value, whole.delta[name] / 3)


def test_a_client_that_adds_the_noise_itself_sends_no_counts_and_no_losses(model, tmp_path):
    task = task_for(model, clip_norm=1e-6, local_noise=0.5)
    update = client_update(task, DATA, model, store_at(tmp_path))
    assert (update.num_examples, update.metrics) == (1, {})
    sent = torch.cat([value.flatten() for value in update.delta.values()])
    assert float(sent.std()) == pytest.approx(0.5, rel=5 / (2 * len(sent)) ** 0.5)


@pytest.mark.parametrize("changes", [{"clip_norm": 1.0}, {"clip_norm": 1.0, "local_noise": 0.5}])
def test_a_client_that_adds_noise_refuses_to_send_control_variates(changes, model, tmp_path):
    task = task_for(model, **changes)
    with pytest.raises(UserError, match="control variates"):
        client_update(replace(task, control=zeros_like(task.shared)), DATA, model,
                     store_at(tmp_path))  # fmt: skip
    assert not (tmp_path / "bank").exists()


def test_a_late_task_does_not_remove_the_state_of_a_later_round(model, tmp_path):
    store = store_at(tmp_path)
    client_update(task_for(model), DATA, model, store)
    client_update(task_for(model, round=3, accepted=1), DATA, model, store)
    later = store.load(3).private
    client_update(task_for(model, round=2, accepted=1), DATA, model, store)
    assert {p.name for p in store.folder.glob("round-*")} == {f"round-000{i}" for i in (1, 2, 3)}
    assert all(torch.equal(later[name], value) for name, value in store.load(3).private.items())
    top = load_adapter(store.folder, "S")
    assert all(torch.equal(later[name], value) for name, value in top.items())
    client_update(task_for(model, round=4, accepted=3), DATA, model, store)
    assert {p.name for p in store.folder.glob("round-*")} == {"round-0003", "round-0004"}


@pytest.mark.parametrize("method", ["plain", "dual-raw", "anchored"])
def test_with_local_noise_a_round_is_answered_once_and_rounds_go_forward_only(
    method, model, tmp_path
):
    store, noise = store_at(tmp_path), {"clip_norm": 1.0, "local_noise": 0.5}
    task = task_for(model, method, **noise)
    first = client_update(task, DATA, model, store).delta
    again = client_update(task, DATA, model, store)
    assert (again.num_examples, again.metrics) == (1, {})
    assert all(torch.equal(again.delta[name], value) for name, value in first.items())
    elsewhere = client_update(task, DATA, model, store_at(tmp_path / "elsewhere")).delta
    assert norm(subtract(elsewhere, first)) > 1  # fresh noise is another
    client_update(task_for(model, method, round=2, accepted=1, **noise), DATA, model, store)
    with pytest.raises(UserError, match="round 1 is asked for after round 2 was answered"):
        client_update(task, DATA, model, store)


@pytest.mark.parametrize("method", ["plain", "dual-raw"])
def test_with_local_noise_nothing_shows_that_a_branch_diverged(method, model, tmp_path):
    store = store_at(tmp_path)
    task = task_for(model, method, lr=1e30, clip_norm=1.0, local_noise=0.5)
    update = client_update(task, DATA, model, store)
    assert all(bool(value.isfinite().all()) for value in update.delta.values())
    shutil.rmtree(store.round_folder(1))
    store.round_folder(1).mkdir()
    with pytest.raises(UserError, match="round 1 was answered before"):
        client_update(task, DATA, model, store)
