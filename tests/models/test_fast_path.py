"""The fast path on tiny random models of many architectures.

Expected losses, gradients and answers come from plain transformers with eager attention, one row at
a time and unpadded, with Eq. 6 of the paper in forward hooks.
"""

import copy
import random

import pytest
import torch
from tiny import SIZES as SIZES_OF_TINY
from tiny import rows, tiny_llama
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from fedsdr.errors import UserError
from fedsdr.models.fast_path import prepare
from fedsdr.models.forward_plan import plan_of
from fedsdr.models.fused_ops import FrozenRMSNorm
from fedsdr.models.generation import transformers_generate
from fedsdr.models.packing import label_logits, last_states, row_losses
from fedsdr.models.two_branch import BranchedModel
from fedsdr.types import Decoding, GenerationRequest, TokenRow, Turn

VOCABULARY = 97
SIZES = {
    **SIZES_OF_TINY,
    "vocab_size": VOCABULARY,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "sliding_window": 5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
    "init_std": 0.2,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "ffn_dim": 64,
    "word_embed_proj_dim": 32,
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 32,
    "state_size": 8,
    "mamba_d_state": 8,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "query_pre_attn_scalar": 8,
}
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 16,
    "factor": 8.0,
}
# model type -> (changes, how rows run, how answers are generated)
FAMILIES = {
    "llama": ({}, "packed", "shared_cache"),
    "mistral": ({}, "packed", "shared_cache"),
    "gemma2": ({"attn_logit_softcapping": 0.5}, "packed", "shared_cache"),
    "cohere": ({"use_qk_norm": True}, "packed", "shared_cache"),
    "gpt2": ({}, "packed", "shared_cache"),
    "opt": ({}, "packed", "shared_cache"),
    "qwen2_moe": ({}, "packed", "shared_cache"),
    "jetmoe": ({"kv_channels": 8}, "packed", "shared_cache"),
    "phi3": (
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16},
        "packed",
        "shared_cache",
    ),
    "qwen2_moe, window": (
        {"use_sliding_window": True, "max_window_layers": 1},
        "padded",
        "own_cache",
    ),
    "doge": ({"sliding_window": None}, "padded", "own_cache"),
    "gpt_oss": ({}, "padded", "own_cache"),
    "nemotron": ({}, "padded", "own_cache"),
    "falcon": ({}, "padded", "own_cache"),
    "bloom": ({}, "padded", "own_cache"),
    "qwen3_next": (HYBRID, "padded", "own_cache"),
    "granitemoehybrid": ({"layer_types": ["mamba", "attention"]}, "padded", "own_cache"),
    "mamba": ({}, "padded", "own_cache"),
    "recurrent_gemma": (
        {"block_types": ("recurrent", "attention"), "attention_window_size": 5, "lru_width": 32},
        "padded",
        "no_cache",
    ),
}


def configuration(kind, changes):
    known = AutoConfig.for_model(kind).to_dict()
    sizes = {name: value for name, value in SIZES.items() if name in known}
    return AutoConfig.for_model(kind, **(sizes | changes))


def model_of(config, **arguments):
    """A model whose norms, biases and other vectors are not at their initial 0 or 1."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        copy.deepcopy(config), dtype=torch.float32, **arguments
    ).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.isfinite().all() or name.endswith(".A"):
                p.copy_(torch.randn(p.shape, generator=draw))
            elif p.dim() == 1 and ("norm" in name or name.endswith("bias")):
                p.add_(torch.randn(p.shape, generator=draw) * 0.2)
    return model.requires_grad_(False)


def data():
    rng = random.Random(0)
    head = [rng.randrange(3, VOCABULARY) for _ in range(4)]
    made = []
    for i in range(5):
        tokens = head + [rng.randrange(3, VOCABULARY) for _ in range(rng.randint(1, 30))]
        supervised = [rng.random() < 0.6 for _ in tokens[:-1]]
        made.append(TokenRow(str(i), tuple(tokens), (*supervised, True)))
    return made


def plain_losses(model, data):
    losses = []
    for row in data:
        logits = model(input_ids=torch.tensor([row.tokens]), use_cache=False).logits[0, :-1]
        wanted = torch.tensor(row.supervised[1:])
        labels = torch.tensor(row.tokens[1:])[wanted]
        losses.append(functional.cross_entropy(logits[wanted], labels, reduction="sum"))
    return torch.stack(losses)


class Numbers:
    def decode(self, ids, skip_special_tokens=True):
        return " ".join(map(str, ids))


def greedy(model, prompt, count):
    """The greedy continuation without any cache, as text; 2 ends it."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits
        if int(logits[0, -1].argmax()) == 2:
            break
        tokens.append(int(logits[0, -1].argmax()))
    return Numbers().decode(tokens[len(prompt) :])


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_gradients_and_answers_are_those_of_plain_transformers(family):
    changes, losses, generation = FAMILIES[family]
    config = configuration(family.split(",")[0], changes)
    eager = {} if family.startswith(("mamba", "recurrent")) else {"attn_implementation": "eager"}
    plain, ours = model_of(config, **eager), model_of(config)
    notes = prepare(ours)
    assert (plan_of(ours).losses, plan_of(ours).generation) == (losses, generation)
    assert len(notes) == (losses != "packed") + (generation == "no_cache")
    assert all("\n" not in note for note in notes)

    prompts = {f"p{i}": list(row.tokens[: 4 + 3 * i]) for i, row in enumerate(data())}
    generate = transformers_generate(
        ours, Numbers(), lambda turns: prompts[turns[0].content], [2], batch_size=3
    )
    asked = [GenerationRequest(name, (Turn("user", name),)) for name in prompts]
    answers = {a.id: a.text for a in generate(asked, Decoding(temperature=0, max_new_tokens=6))}
    assert answers == {name: greedy(plain, prompt, 6) for name, prompt in prompts.items()}

    model = BranchedModel(ours, rank=3, alpha=6, target_modules="all-linear")
    draw = torch.Generator().manual_seed(5)
    factors = {
        name: torch.randn(p.shape, generator=draw) * 0.1
        for branch in ("R", "S")
        for name, p in model.parameters(branch).items()
    }
    model.set(factors)
    leaves = {name: value.clone().requires_grad_() for name, value in factors.items()}

    def add_branches(layer, args, out, name):
        changes = [
            (args[0] @ leaves[f"{b}/{name}.lora_A"].t()) @ leaves[f"{b}/{name}.lora_B"].t()
            for b in ("R", "S")
        ]
        return out + 2.0 * sum(changes)

    for name in model.layers:
        plain.get_submodule(name).register_forward_hook(
            lambda layer, args, out, name=name: add_branches(layer, args, out, name)
        )
    expected = plain_losses(plain, data())
    expected.sum().backward()
    with model.using("R", "S", trained="S"):
        own = row_losses(ours, data())
        torch.testing.assert_close(own.detach(), expected.detach(), rtol=1e-4, atol=1e-4)
        own.sum().backward()
        for name, parameter in model.parameters("S").items():
            want = leaves[name].grad
            if want is None or parameter.grad is None:  # an expert that no token reached
                assert want is None or not want.any()
                assert parameter.grad is None or not parameter.grad.any()
                continue
            assert float((parameter.grad - want).abs().max()) <= 1e-3 * float(want.abs().max())


def test_a_head_that_caps_its_logits_is_left_to_the_model():
    model = model_of(configuration("gemma2", {"final_logit_softcapping": 3.0}))
    expected = plain_losses(model, data())
    assert prepare(model) == ()
    assert not plan_of(model).plain_head
    assert not any(isinstance(m, FrozenRMSNorm) for m in model.modules())  # Gemma's is 1 + weight
    torch.testing.assert_close(row_losses(model, data()), expected, rtol=1e-5, atol=1e-5)


def test_a_plain_head_and_plain_norms_are_found():
    model = tiny_llama()
    assert plan_of(model).plain_head
    assert sum(isinstance(m, FrozenRMSNorm) for m in model.modules()) == 5


def test_a_norm_that_only_looks_like_rms_norm_is_kept_and_the_note_names_it():
    model = tiny_llama(packed=False)
    norm = model.model.norm
    # The same on the vector that fuse_norms tries, another one elsewhere.
    norm.forward = lambda x: type(norm).forward(norm, x) * (1.0 if x.dim() == 2 else 1.1)
    expected = plain_losses(model, rows())
    (note,) = prepare(model)
    assert "fused norms" in note
    torch.testing.assert_close(row_losses(model, rows()), expected, rtol=1e-5, atol=1e-5)


def test_windows_are_restored_after_the_check():
    model = model_of(configuration("gemma2", {"sliding_window": 40}))
    prepare(model)
    assert model.config.sliding_window == 40
    assert {layer.self_attn.sliding_window for layer in model.model.layers} == {40, None}


def test_rows_beyond_a_dynamic_rope_window_are_refused_in_one_line():
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    config = configuration("llama", {"rope_parameters": rope, "max_position_embeddings": 16})
    plain, model = model_of(config), model_of(config)
    prepare(model)
    short = [TokenRow("a", tuple(range(3, 19)), (True,) * 16)]
    torch.testing.assert_close(row_losses(model, short), plain_losses(plain, short))
    long = [TokenRow("a", tuple(range(3, 20)), (True,) * 17)]
    with pytest.raises(UserError, match=r"data\.max_length"):
        row_losses(model, long)


@pytest.mark.parametrize("kind", ["llama", "phi3", "bloom"])
def test_logits_and_states_at_labels_are_those_of_each_row_alone(kind):
    config = configuration(kind, FAMILIES[kind][0])
    plain, ours = model_of(config), model_of(config)
    prepare(ours)
    logits, states = [], []
    for row in data():
        out = plain(input_ids=torch.tensor([row.tokens]), output_hidden_states=True)
        logits.append(out.logits[0, :-1][torch.tensor(row.supervised[1:])])
        states.append(out.hidden_states[-1][0, -1])
    torch.testing.assert_close(label_logits(ours, data()), torch.cat(logits), rtol=1e-4, atol=1e-4)
    found = last_states(ours, [row.tokens for row in data()])
    torch.testing.assert_close(found, torch.stack(states), rtol=1e-4, atol=1e-4)


def test_a_model_that_sees_later_tokens_is_refused():
    model = model_of(configuration("bert", {"is_decoder": False}))
    with pytest.raises(UserError, match="later tokens"):
        prepare(model)


def test_a_model_whose_weights_are_not_finite_is_refused():
    model = tiny_llama(packed=False)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 3] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        prepare(model)


def test_a_model_that_cannot_run_is_refused_in_one_line():
    model = tiny_llama(packed=False)
    model.model.layers[0].mlp.down_proj = torch.nn.Linear(5, 32)
    with pytest.raises(UserError, match="fails on a short row") as error:
        prepare(model)
    assert "\n" not in str(error.value)
