"""Optimizers and learning rates are PyTorch's."""

from dataclasses import replace

import pytest
import torch
from tiny import branched, rows, tiny_llama
from torch import nn

from fedsdr.algorithms.learning_rate import with_rate_of
from fedsdr.config import Config, LoraConfig, TrainConfig
from fedsdr.models.packing import row_losses, supervised_tokens
from fedsdr.runs.run_plan import client_settings
from fedsdr.training.client_store import ClientStore
from fedsdr.training.client_update import client_update
from fedsdr.training.local_training import ClientRows
from fedsdr.training.optimizer_step import phase_steps, run_alone
from fedsdr.types import ClientTask, LocalSettings


@pytest.mark.parametrize(
    ("name", "build"),
    [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD), ("adafactor", torch.optim.Adafactor)],
)
def test_a_phase_takes_the_steps_of_the_torch_optimizer(name, build):
    settings = LocalSettings(
        optimizer=name, lr=0.02, weight_decay=0.1, batch_size=6, max_grad_norm=0.0
    )
    data = rows(6)
    ours, twin = branched(tiny_llama()), branched(tiny_llama())
    with ours.using("R", trained="R"):
        run_alone(phase_steps(ours.parameters("R"), data, settings, epochs=3, seed=0), ours.model)
    with twin.using("R", trained="R"):
        optimizer = build(twin.parameters("R").values(), lr=0.02, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            loss = row_losses(twin.model, data).sum() / sum(map(supervised_tokens, data))
            loss.backward()
            optimizer.step()
    for key, value in twin.get("R").items():
        torch.testing.assert_close(ours.get("R")[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("warmup", [0, 1, 3])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_rates_of_the_rounds_are_those_of_torchs_schedulers(schedule, warmup):
    rounds, lr = 8, 0.3
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = torch.optim.lr_scheduler
    left = rounds - warmup
    after = {
        "constant": lambda: scheduler.ConstantLR(optimizer, factor=1.0),
        "linear": lambda: scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=left),
        "cosine": lambda: scheduler.CosineAnnealingLR(optimizer, T_max=left),
    }[schedule]()
    if warmup:
        rise = scheduler.LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
        after = scheduler.SequentialLR(optimizer, [rise, after], milestones=[warmup])
    train = TrainConfig(lr=lr, schedule=schedule, warmup_rounds=warmup)
    config = Config(train=train)
    config = replace(config, federation=replace(config.federation, rounds=rounds))
    settings = client_settings(config)
    for round in range(1, rounds + 1):
        expected = optimizer.param_groups[0]["lr"]
        assert with_rate_of(settings, round).lr == pytest.approx(expected, rel=1e-6)
        assert expected > 0
        optimizer.step()
        after.step()
    assert with_rate_of(replace(settings, afterwards=True), rounds).lr == lr


def test_a_client_trains_a_round_at_the_rate_of_the_schedule(tmp_path):
    model = branched(tiny_llama())

    def change(round, **settings):
        given = LocalSettings(method="plain", lora_dropout=0.0, rounds=4, **settings)
        task = ClientTask(round, "bank", 7, model.initial("R", 5), {}, given)
        store = ClientStore(tmp_path / "bank", LoraConfig(alpha=8), "tiny")
        return client_update(task, ClientRows(tuple(rows())), model, store).delta

    halfway = change(3, lr=0.02, schedule="cosine")  # 0.02 (1 + cos(pi 2 / 4)) / 2
    constant = change(3, lr=0.01)
    assert all(torch.equal(halfway[name], constant[name]) for name in constant)
    assert any(value.any() for value in constant.values())


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("train.optimizer", "adam", "did you mean 'adamw'"),
        ("train.schedule", "cosin", "did you mean 'cosine'"),
        ("lora.init", "pissa", "takes its factors out of the base"),
        ("lora.init", "eva", "those of a client are private"),
    ],
)
def test_a_name_that_cannot_be_had_is_answered_in_one_line(
    key, value, said, fedsdr, write_config, tmp_path
):
    write_config()
    code, _, err = fedsdr("run", tmp_path / "config.toml", "--set", f"{key}={value}")
    assert (code, err.count("\n")) == (2, 1)
    assert said in err


def test_dora_and_fully_trained_modules_are_refused_with_the_reason(fedsdr, write_config, tmp_path):
    write_config()
    for key, said in (("use_dora", "would not add up"), ("modules_to_save", "cannot add up")):
        code, _, err = fedsdr("run", tmp_path / "config.toml", "--set", f"lora.{key}=true")
        assert (code, err.count("\n")) == (2, 1)
        assert said in err
