"""Which layers get branches: PEFT is the oracle where it can adapt them too."""

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from test_fast_path import configuration, data, model_of, plain_losses
from tiny import tiny_llama

from fedsdr.config import LoraConfig
from fedsdr.errors import UserError
from fedsdr.models.adapters import save_adapter
from fedsdr.models.fast_path import prepare
from fedsdr.models.packing import row_losses
from fedsdr.models.target_modules import describe_targets, target_layers
from fedsdr.models.two_branch import BranchedModel

MOE = {"num_hidden_layers": 2}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "falcon", "gemma2", "opt", "bloom", "gpt_neox"])
def test_all_linear_means_the_layers_that_peft_means(kind):
    model = model_of(configuration(kind, {}))
    ours = target_layers(model, "all-linear")
    adapted = get_peft_model(model, peft.LoraConfig(target_modules="all-linear"))
    theirs = [
        name.removeprefix("base_model.model.").removesuffix(".lora_A")
        for name, _ in adapted.named_modules()
        if name.endswith(".lora_A")
    ]
    assert ours == theirs


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (["q_porj"], "q_proj"),
        (["input_layernorm"], "not a linear layer"),
        (["q_proj", "nothing"], "matches no layer"),
        (["q_proj", "lm_head"], "'lm_head' is the output head"),
        (["mlp"], "not a linear layer"),
        ("lm_head", "'lm_head' is the output head"),
    ],
)
def test_a_target_that_cannot_be_adapted_is_named(targets, words):
    with pytest.raises(UserError, match=words) as error:
        BranchedModel(tiny_llama(), rank=4, alpha=8, target_modules=targets)
    assert "\n" not in str(error.value)


def test_routers_and_fused_experts_are_left_out_and_named():
    model = model_of(configuration("phimoe", MOE))
    chosen = target_layers(model, "all-linear")
    assert {name.rpartition(".")[2] for name in chosen} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    told = describe_targets(model, chosen)
    assert "adapting 8 layers (k_proj 2, o_proj 2, q_proj 2, v_proj 2)" in told
    left_out = told.partition("not adapted: ")[2]
    for part in ("experts (PhimoeExperts, experts in one block)", "lm_head", "router"):
        assert part in left_out
    with pytest.raises(UserError, match=r"'router'.*(does not compute|not a linear layer)"):
        target_layers(model, ["router"])


@pytest.mark.parametrize("kind", ["gpt2", "falcon", "gemma2", "phimoe"])
def test_adapter_and_merged_model_have_the_losses_of_the_branches_in_plain_libraries(
    kind, tmp_path
):
    config = configuration(kind, {})
    ours = model_of(config)
    prepare(ours)
    model = BranchedModel(ours, rank=3, alpha=6, target_modules="all-linear")
    draw = torch.Generator().manual_seed(5)
    for branch in ("R", "S"):
        model.set(
            {
                name: torch.randn(p.shape, generator=draw) * 0.1
                for name, p in model.parameters(branch).items()
            }
        )
    with model.using("R", "S"), torch.no_grad():
        expected = row_losses(ours, data())
    values = model.get("R", "S")
    save_adapter(
        tmp_path / "adapter", values, ["R", "S"], lora=LoraConfig(alpha=6), base_name="tiny"
    )
    loaded = PeftModel.from_pretrained(model_of(config), tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(plain_losses(loaded, data()), expected, rtol=1e-4, atol=1e-4)

    model.merge("R", "S").save_pretrained(tmp_path / "merged")
    merged = type(ours).from_pretrained(tmp_path / "merged").eval()
    assert {n: p.shape for n, p in merged.named_parameters()} == {
        n: p.shape for n, p in model_of(config).named_parameters()
    }
    with torch.no_grad():
        torch.testing.assert_close(plain_losses(merged, data()), expected, rtol=1e-4, atol=1e-4)
