"""Write a branch as a LoRA adapter of llama.cpp, as its convert_lora_to_gguf.py does."""

from pathlib import Path
from typing import Any

from torch import Tensor

from fedsdr.errors import UserError
from fedsdr.extras import import_extra
from fedsdr.tensors import Tensors

# model_type of transformers -> llama.cpp's architecture, and whether it reorders q and k.
ARCHITECTURES = {
    "llama": ("llama", True),
    "mistral": ("llama", True),
    "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False),
    "gemma2": ("gemma2", False),
}
CONVERTER = "llama.cpp's convert_lora_to_gguf.py converts the exported adapter"


def check_architecture(config: Any) -> None:
    """UserError for a model whose names of layers in llama.cpp are not known here."""
    if config.model_type not in ARCHITECTURES:
        raise UserError(
            f"--gguf: models of type '{config.model_type}' are not known "
            f"(known: {', '.join(ARCHITECTURES)}); {CONVERTER}"
        )


def write_gguf_adapter(path: Path, factors: Tensors, scales: dict[str, float], config: Any) -> None:
    """Write factors, named LAYER.lora_A and LAYER.lora_B, with the scale of each layer.

    llama.cpp scales by alpha / r with one alpha for all layers. It is written as the first layer's
    scale times r; where another layer differs, its B is multiplied by the rest. B of q and k of the
    Llama family has its rows in the order in which llama.cpp rotates them.
    """
    check_architecture(config)
    gguf = import_extra("gguf", "gguf", "--gguf")
    name, reorders = ARCHITECTURES[config.model_type]
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    layers = [key.removesuffix(".lora_A") for key in factors if key.endswith(".lora_A")]
    alpha = scales[layers[0]] * len(factors[f"{layers[0]}.lora_A"])
    writer = gguf.GGUFWriter(path, name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for layer in layers:
        a, b = factors[f"{layer}.lora_A"], factors[f"{layer}.lora_B"]
        b = b * (scales[layer] * len(a) / alpha)
        if reorders and layer.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if layer.endswith("q_proj") else None
            b = rotated_rows(b, heads or config.num_key_value_heads)
        target = names.get_name(f"{layer}.weight", try_suffixes=(".weight",))
        if target is None:
            raise UserError(f"--gguf: llama.cpp has no name for the layer '{layer}'; {CONVERTER}")
        for suffix, value in ((".lora_a", a), (".lora_b", b)):
            writer.add_tensor(target + suffix, value.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rotated_rows(b: Tensor, heads: int) -> Tensor:
    """Return the rows of each head with those that are rotated together side by side."""
    halves = b.reshape(heads, 2, b.shape[0] // heads // 2, -1)
    return halves.transpose(1, 2).reshape(b.shape)
