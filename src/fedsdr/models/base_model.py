"""Load the base model: a hub id, a folder, a .gguf file, or the embedded one."""

import functools
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from fedsdr.config import Dtype, ModelConfig
from fedsdr.embedded_packages import embedded_model_file
from fedsdr.errors import UserError, nearest
from fedsdr.files import made_once, write_folder
from fedsdr.models.packing import prepare

EMBEDDED = "embedded:smollm2-135m-instruct"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Base:
    """A frozen base model and what identifies it. `gguf` is its .gguf file, if it came as one."""

    name: str
    fingerprint: str
    model: nn.Module
    tokenizer: Any
    gguf: Path | None = None


def cache_folder() -> Path:
    """Return where converted models and rewrites are kept: $FEDSDR_CACHE or ~/.cache/fedsdr."""
    return Path(os.environ.get("FEDSDR_CACHE") or Path.home() / ".cache" / "fedsdr")


def choose_device(name: str) -> torch.device:
    """Return the device; "auto" is CUDA when there is one. UserError when it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"model.device: '{name}' is no device (auto, cpu, cuda, cuda:1)") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"model.device: '{name}', but PyTorch sees no CUDA device here; use 'auto'")
    return device


def choose_dtype(name: Dtype, device: torch.device) -> Dtype:
    """Return the name of the base's dtype; "auto" is bf16 where the device multiplies it in
    hardware, else fp16 on a GPU and fp32 on a CPU."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def dtype_of(config: ModelConfig) -> Dtype:
    """Return the name of the dtype that this base has on this machine."""
    return choose_dtype(config.dtype, choose_device(config.device))


def gguf_of(name: str) -> Path | None:
    """Return the .gguf file that a model name stands for, or None when it is something else."""
    if name.startswith("embedded:"):
        if name != EMBEDDED:
            raise UserError(f"model.name: unknown '{name}'{nearest(name, [EMBEDDED])}")
        return embedded_model_file()
    if name.endswith(".gguf"):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"model.name: {path}: no such file")
        return path
    return None


def load_base(config: ModelConfig) -> Base:
    """Load model and tokenizer, frozen and in eval mode.

    Raises UserError for a missing folder, a folder without weights, an unknown hub id, an
    architecture that transformers does not know, or a quantisation that this machine cannot do.
    """
    _quiet()
    device = choose_device(config.device)
    source, gguf = _source_of(config)
    folder = Path(source)
    model, tokenizer = _from_pretrained(source, config, device)
    model.requires_grad_(False).eval()
    prepare(model)
    if gguf:
        fingerprint = _hash_file(gguf)
    elif folder.is_dir():
        fingerprint = _hash_folder(folder)
    else:
        fingerprint = str(getattr(model.config, "_commit_hash", None) or config.revision)
    return Base(config.name, fingerprint, model, tokenizer, gguf)


def load_shape(config: ModelConfig, *, weights: bool = True) -> nn.Module:
    """Return the model on the meta device: sizes and dtypes without values (quick: no weights).

    A quantised base is not quantised here. UserError as in `load_base`, but where a folder needs no
    `weights`: for its shape its config.json is enough.
    """
    source, _ = _source_of(config, weights)
    from transformers import AutoConfig, AutoModelForCausalLM

    with _loading(config.name):
        shape = AutoConfig.from_pretrained(source, **_hub_arguments(config))
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(
                shape,
                dtype=DTYPES[dtype_of(config)],
                trust_remote_code=config.trust_remote_code,
            )
    model.requires_grad_(False).eval()
    prepare(model)
    return model


def _source_of(config: ModelConfig, weights: bool = True) -> tuple[str, Path | None]:
    """Return what transformers loads, a hub id or a folder, and the .gguf file it comes from."""
    gguf = gguf_of(config.name)
    if gguf:
        return str(_converted(gguf)), gguf
    folder = Path(config.name)
    if folder.is_absolute() or folder.exists():
        _check_folder(folder, weights)
    return config.name, None


def load_tokenizer(config: ModelConfig) -> Any:
    """Load the tokenizer alone. A .gguf is converted whole, once."""
    source, _ = _source_of(config)
    from transformers import AutoTokenizer

    with _loading(config.name):
        return AutoTokenizer.from_pretrained(source, **_hub_arguments(config))


def _quiet() -> None:
    """Keep transformers' own bars off the screen: ours say what is loading."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _hub_arguments(config: ModelConfig) -> dict[str, Any]:
    return {"revision": config.revision or None, "trust_remote_code": config.trust_remote_code}


def _from_pretrained(source: str, config: ModelConfig, device: torch.device) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    arguments: dict[str, Any] = {
        "dtype": DTYPES[dtype_of(config)],
        "device_map": {"": device} if config.quantize != "none" else None,
        **_hub_arguments(config),
    }
    if config.quantize != "none":
        arguments["quantization_config"] = _quantization(config.quantize, arguments["dtype"])
    with _loading(config.name):
        tokenizer = AutoTokenizer.from_pretrained(source, **_hub_arguments(config))
        model: Any = AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, **arguments)
    return (model if config.quantize != "none" else model.to(device)), tokenizer


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Turn what transformers says of a model that is not there into one line."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"model.name: '{name}' cannot be loaded: {reason}") from error


def _quantization(kind: str, compute: torch.dtype) -> Any:
    """Return bitsandbytes' settings: int8, or 4-bit NF4 with double quantisation (QLoRA)."""
    if not torch.cuda.is_available():
        raise UserError(f"model.quantize: '{kind}' needs a CUDA device; use 'none' on this machine")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise UserError(
            f"model.quantize: '{kind}' needs bitsandbytes: pip install -e '.[quantize]'"
        ) from None
    from transformers import BitsAndBytesConfig

    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def _check_folder(folder: Path, weights: bool) -> None:
    if not folder.is_dir():
        raise UserError(f"model.name: {folder}: no such folder")
    if not (folder / "config.json").is_file():
        raise UserError(f"model.name: {folder}: has no config.json, so it is not a model folder")
    if weights and not any(folder.glob("*.safetensors")):
        raise UserError(
            f"model.name: {folder}: has no *.safetensors weights (other formats are not read)"
        )


def _converted(gguf: Path) -> Path:
    """Return a safetensors copy of a .gguf file, made once (fp32, exactly its dequantised values).

    Reading a .gguf takes transformers some 15 s each time; the copy under a second.
    """
    folder = cache_folder() / "models" / f"{gguf.stem}-{_hash_file(gguf)[:12]}"
    return made_once(folder, functools.partial(_convert, gguf))


def _convert(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _loading(str(gguf)):
        where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        model: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**where)
    # What remains is a plain fp32 model: transformers refuses to save it while it is marked so.
    model.hf_quantizer = None
    del model.config.quantization_config
    for mark in ("is_quantized", "quantization_method"):
        if hasattr(model, mark):
            delattr(model, mark)

    def write(temporary: Path) -> None:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)

    write_folder(folder, write)


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_folder(folder: Path) -> str:
    """Hash the configuration, the tokenizer and all weights."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        digest.update(f"{path.name} {_hash_file(path)} ".encode())
    return digest.hexdigest()
