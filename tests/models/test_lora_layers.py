"""Ranks, alphas, scales and starts of the layers are those of PEFT for the same keys."""

import math

import peft
import pytest
import torch
from test_fast_path import plain_losses
from test_two_branch import twin_losses
from tiny import rows, tiny_llama

from fedsdr.config import LoraConfig
from fedsdr.errors import UserError
from fedsdr.models.adapters import load_adapter, peft_tensors, save_adapter
from fedsdr.models.packing import row_losses
from fedsdr.models.target_modules import target_layers
from fedsdr.models.two_branch import with_branches

PATTERNS = LoraConfig(
    rank=4,
    alpha=6,
    rslora=True,
    target_modules=["q_proj", "v_proj", "down_proj"],
    rank_pattern={"down_proj": 2, "layers.1.self_attn.q_proj": 3},
    alpha_pattern={r"self_attn\.v_proj": 10},
)


def filled(lora: LoraConfig):
    """A tiny model with random factors in both branches."""
    ours = with_branches(tiny_llama(), lora)
    draw = torch.Generator().manual_seed(1)
    for branch in ("R", "S"):
        ours.set(
            {n: torch.randn(p.shape, generator=draw) * 0.2
             for n, p in ours.parameters(branch).items()}
        )  # fmt: skip
    return ours


def peft_config_of(lora: LoraConfig, **keys):
    return peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, use_rslora=lora.rslora, lora_dropout=0.0,
        rank_pattern=dict(lora.rank_pattern), alpha_pattern=dict(lora.alpha_pattern),
        target_modules=lora.target_modules, **keys,
    )  # fmt: skip


@pytest.mark.parametrize("rslora", [True, False])
def test_losses_with_patterns_are_those_of_peft_with_the_same_keys(rslora):
    lora = LoraConfig(**{**vars(PATTERNS), "rslora": rslora})
    ours = filled(lora)
    config = peft_config_of(lora)
    twin = peft.get_peft_model(tiny_llama(packed=False), config, adapter_name="R")
    twin.add_adapter("S", config)
    state = twin.state_dict()
    for branch in ("R", "S"):
        for name, value in peft_tensors(ours.get(branch), branch).items():
            state[name.replace(".weight", f".{branch}.weight")].copy_(value)
    twin.base_model.set_adapter(["R", "S"])
    with ours.using("R", "S"), torch.no_grad():
        got = row_losses(ours.model, rows())
        torch.testing.assert_close(got, twin_losses(twin.eval(), rows()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rslora", [True, False])
@pytest.mark.parametrize("branches", [("R",), ("R", "S")])
def test_files_with_patterns_load_in_plain_peft_and_merge_to_the_same_losses(
    branches, rslora, tmp_path
):
    lora = LoraConfig(**{**vars(PATTERNS), "rslora": rslora})
    ours = filled(lora)
    with ours.using(*branches), torch.no_grad():
        expected = row_losses(ours.model, rows())
    values = ours.get("R", "S")
    save_adapter(tmp_path / "a", values, branches, lora=lora, base_name="tiny")
    loaded = peft.PeftModel.from_pretrained(tiny_llama(packed=False), tmp_path / "a").eval()
    assert loaded.peft_config["default"].use_rslora == rslora
    with torch.no_grad():
        torch.testing.assert_close(plain_losses(loaded, rows()), expected, rtol=1e-5, atol=1e-5)
    if branches == ("R",):
        read = load_adapter(tmp_path / "a", "R")
        assert all(torch.equal(read[name], value) for name, value in ours.get("R").items())
    merged = ours.merge(*branches)
    with torch.no_grad():
        torch.testing.assert_close(row_losses(merged, rows()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("init", ["kaiming", "gaussian"])
def test_a_starts_with_the_spread_of_peft(init):
    lora = LoraConfig(rank=8, target_modules="all-linear", init=init)
    ours = with_branches(tiny_llama(), lora).initial("R", 3)
    torch.manual_seed(3)
    keys = {"init_lora_weights": {"kaiming": True}.get(init, init)}
    twin = peft.get_peft_model(tiny_llama(packed=False), peft_config_of(lora, **keys))
    theirs = {n: p for n, p in twin.named_parameters() if "lora_A" in n}
    pairs = [
        (value, next(p for n, p in theirs.items() if name.removeprefix("R/") in n))
        for name, value in ours.items()
        if name.endswith("lora_A")
    ]
    assert len(pairs) == len(theirs) == 14
    for mine, other in pairs:
        assert mine.std() == pytest.approx(float(other.std()), rel=0.2)
    if init == "kaiming":  # a uniform distribution ends somewhere
        assert max(x.abs().max() * math.sqrt(x.shape[1]) for x, _ in pairs) <= 1
    assert all(not value.any() for name, value in ours.items() if name.endswith("lora_B"))


def test_one_regular_expression_chooses_the_layers_that_peft_chooses():
    pattern = r".*\.layers\.1\..*\.(q|o)_proj"
    model = tiny_llama(packed=False)
    ours = target_layers(model, pattern)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=pattern))
    assert ours == [
        name.removeprefix("base_model.model.").removesuffix(".lora_A")
        for name, _ in adapted.named_modules()
        if name.endswith(".lora_A")
    ]
    assert len(ours) == 2


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"target_modules": "(q_proj"}, "neither a layer nor a regular expression"),
        ({"target_modules": ".*nothing"}, "matches no layer"),
        ({"target_modules": r".*\.self_attn"}, "is not a linear layer"),
        ({"rank_pattern": {"k_proj": 2}}, "rank_pattern: 'k_proj' matches no adapted layer"),
        ({"alpha_pattern": {"(": 2}}, r"alpha_pattern: '\(' is not a regular expression"),
    ],
)
def test_a_pattern_that_fits_nothing_is_refused_in_one_line(keys, said):
    with pytest.raises(UserError, match=said) as caught:
        with_branches(tiny_llama(), LoraConfig(**keys))
    assert "\n" not in str(caught.value)
