"""A tiny model with random weights, and token rows for it."""

import random

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from fedsdr.models.fast_path import prepare
from fedsdr.models.two_branch import BranchedModel
from fedsdr.types import TokenRow

VOCABULARY = 384
# Two layers with grouped key and value heads, for a configuration of any such family.
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def tiny_llama(seed: int = 0, packed: bool = True, **changes: object) -> PreTrainedModel:
    """Return a two-layer Llama with grouped key and value heads, in fp32 and eval mode."""
    config = LlamaConfig(
        **{
            **SIZES,
            "max_position_embeddings": 512,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
            "initializer_range": 0.2,
            **changes,
        }
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).eval()
    if packed:
        prepare(model)
    return model


def branched(
    model: PreTrainedModel, rank: int = 4, targets: object = ("q_proj", "v_proj")
) -> BranchedModel:
    """Wrap a model; both branches get random factors, B too, so that nothing is zero."""
    wrapped = BranchedModel(model, rank=rank, alpha=2 * rank, target_modules=targets)
    generator = torch.Generator().manual_seed(1)
    for branch in ("R", "S"):
        wrapped.set(
            {
                name: torch.randn(p.shape, generator=generator) * 0.2
                for name, p in wrapped.parameters(branch).items()
            }
        )
    return wrapped


def rows(count: int = 6, seed: int = 0, longest: int = 24) -> list[TokenRow]:
    """Return rows of different lengths with about half of their tokens supervised."""
    rng = random.Random(seed)
    made = []
    for i in range(count):
        n = rng.randint(4, longest)
        tokens = tuple(rng.randrange(3, VOCABULARY) for _ in range(n))
        made.append(TokenRow(f"row-{i}", tokens, tuple(t >= n // 2 for t in range(n))))
    return made
