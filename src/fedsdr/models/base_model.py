"""Load the base model from a hub id, a folder, a .gguf file, or the embedded package."""

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from fedsdr.config import Dtype, ModelConfig
from fedsdr.embedded_packages import embedded_model_file
from fedsdr.errors import UserError, nearest
from fedsdr.files import made_once, write_folder
from fedsdr.models.cpu_choice import EMBEDDED_SIZES, CpuTimes, cpu_times, sizes_of, thread_limit
from fedsdr.models.fast_path import prepare
from fedsdr.models.gguf_header import stored_in_gguf
from fedsdr.models.load_checks import check_weights, library_errors, size_limit
from fedsdr.models.model_files import (
    StoredWeights,
    check_folder,
    hash_file,
    hash_folder,
    stored_weights,
)

EMBEDDED = "embedded:smollm2-135m-instruct"
# For check_weights, which refuses tensors of other shapes with their names.
_CHECKED: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Base:
    """A frozen base model, its tokenizer and the hash of its files.

    `gguf` is its .gguf file if it has one; `notes` say which parts of the fast path it cannot use.
    """

    name: str
    fingerprint: str
    model: nn.Module
    tokenizer: Any
    gguf: Path | None = None
    notes: tuple[str, ...] = ()


def cache_folder() -> Path:
    """Return the folder of converted models and rewrites: $FEDSDR_CACHE or ~/.cache/fedsdr."""
    return Path(os.environ.get("FEDSDR_CACHE") or Path.home() / ".cache" / "fedsdr")


def choose_device(name: str) -> torch.device:
    """Return the device; "auto" is CUDA if available, else the CPU, on Apple hardware too, whose
    "mps" has no float64, which sums and sampling need. UserError if unavailable."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", name):
        why = ": PyTorch has no float64 there" if name == "mps" else ""
        fix = "use auto, cpu, cuda or cuda:1"
        raise UserError(f"model.device: '{name}' is not supported{why}; {fix}")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"model.device: '{name}', but PyTorch finds no CUDA device; use 'auto'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise UserError(f"model.device: '{name}', but the last CUDA device is cuda:{last}")
    return device


def choose_dtype(name: Dtype, device: torch.device) -> Dtype:
    """Return the base's dtype. "auto" is bf16 on a GPU that has it in hardware, else fp16, and on a
    CPU what is faster for the sizes of the embedded model."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    times = cpu_times(*EMBEDDED_SIZES, cache_folder())
    return times.faster if times else "fp32"


def dtype_of(config: ModelConfig) -> Dtype:
    """Return the dtype of the configured base on this machine."""
    times = _times(config) if config.dtype == "auto" else None
    return times.faster if times else choose_dtype(config.dtype, choose_device(config.device))


def threads_of(config: ModelConfig) -> int:
    """Return the number of threads for the configured base on this machine."""
    times = _times(config) if thread_limit() > 1 else None
    return times.threads_for(dtype_of(config)) if times else thread_limit()


def _times(config: ModelConfig) -> CpuTimes | None:
    """Return the CPU's speed at the model's sizes; None on a GPU, and where there is no choice."""
    if choose_device(config.device).type != "cpu":
        return None
    shape = _model_config(config, weights=False).get_text_config()
    return cpu_times(*sizes_of(shape), cache_folder())


def stored_dtype(config: ModelConfig) -> Dtype:
    """Return the dtype of the base's files, or that of the configuration if it is another one."""
    stored = _model_config(config).dtype
    names = [name for name, dtype in DTYPES.items() if dtype == stored]
    return cast(Dtype, names[0]) if names else config.dtype


def _model_config(config: ModelConfig, weights: bool = True) -> Any:
    """Return the model's own configuration, as transformers reads it."""
    source, _ = source_of(config, weights)
    from transformers import AutoConfig

    with library_errors(config.name):
        return AutoConfig.from_pretrained(source, **_hub_arguments(config))


def gguf_of(name: str) -> Path | None:
    """Return the .gguf file of a model name, or None if it is not one. UserError if missing."""
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
    """Load model and tokenizer; the model is frozen and in eval mode.

    UserError for a missing folder, files that are missing, damaged or of another model, an unknown
    hub id or architecture, or a quantisation that this machine does not support.
    """
    device = choose_device(config.device)
    source, gguf = source_of(config)
    folder = Path(source)
    model, tokenizer = plain_model(source, config, device)
    model.requires_grad_(False).eval()
    try:
        notes = prepare(model)
    except UserError as error:
        raise UserError(f"model.name: '{config.name}': {error}") from error
    if gguf:
        fingerprint = hash_file(gguf)
    elif folder.is_dir():
        fingerprint = hash_folder(folder)
    else:
        fingerprint = str(getattr(model.config, "_commit_hash", None) or config.revision)
    times = _times(config) if config.dtype == "auto" else None
    notes = (*(times.dtype_notes() if times else ()), *notes)
    return Base(config.name, fingerprint, model, tokenizer, gguf, notes)


def load_shape(config: ModelConfig, *, weights: bool = True) -> nn.Module:
    """Return the model on the meta device, with shapes and dtypes but no data, unquantised.

    UserError as in `load_base`; with `weights=False` a folder needs only its config.json.
    """
    source, _ = source_of(config, weights)
    stored = _stored(source) if weights else None
    shape, dtype = _model_config(config, weights), DTYPES[dtype_of(config)]
    from transformers import AutoModelForCausalLM

    with library_errors(config.name), torch.device("meta"), size_limit(config.name, stored):
        model: Any = AutoModelForCausalLM.from_config(
            shape, dtype=dtype, trust_remote_code=config.trust_remote_code
        )
    model.requires_grad_(False).eval()
    prepare(model)
    return model


def checked_shape(config: ModelConfig) -> nn.Module:
    """Return `load_shape`'s model, after the names and shapes in a folder's files were checked.

    UserError as in `load_base`.
    """
    source, _ = source_of(config)
    shape = load_shape(config)
    if Path(source).is_dir() and not hasattr(shape.config, "quantization_config"):
        from transformers import AutoModelForCausalLM

        with library_errors(config.name):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source, device_map={"": "meta"}, **_CHECKED, **_hub_arguments(config)
            )
        check_weights(config.name, *loaded)
    return shape


def source_of(config: ModelConfig, weights: bool = True) -> tuple[str, Path | None]:
    """Return the hub id or folder that transformers loads, and its .gguf file if it has one."""
    gguf = gguf_of(config.name)
    if gguf:
        return str(_converted(gguf)), gguf
    folder = Path(config.name)
    if folder.is_absolute() or folder.exists():
        with library_errors(config.name):
            check_folder(folder, weights=weights)
    return config.name, None


def _stored(source: str) -> StoredWeights | None:
    """Return how much the files of a folder hold; None for a hub id."""
    return stored_weights(Path(source)) if Path(source).is_dir() else None


def load_tokenizer(config: ModelConfig) -> Any:
    """Load only the tokenizer. UserError as in `load_base`."""
    source, _ = source_of(config)
    from transformers import AutoTokenizer

    with library_errors(config.name):
        return AutoTokenizer.from_pretrained(source, **_hub_arguments(config))


def _hub_arguments(config: ModelConfig) -> dict[str, Any]:
    return {"revision": config.revision or None, "trust_remote_code": config.trust_remote_code}


def plain_model(source: str, config: ModelConfig, device: torch.device) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    arguments: dict[str, Any] = {
        "dtype": DTYPES[dtype_of(config)],
        "device_map": {"": device} if config.quantize != "none" else None,
        **_hub_arguments(config),
    }
    if config.quantize != "none":
        arguments["quantization_config"] = _quantization(config.quantize, arguments["dtype"])
    with library_errors(config.name), size_limit(config.name, _stored(source)):
        tokenizer = AutoTokenizer.from_pretrained(source, **_hub_arguments(config))
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, use_safetensors=True, **_CHECKED, **arguments
        )
        model, info = loaded
        if config.quantize == "none":
            model = model.to(device)
    check_weights(config.name, model, info)
    return model, tokenizer


def _quantization(kind: str, compute: torch.dtype) -> Any:
    """Return bitsandbytes' configuration: int8, or NF4 with double quantisation (QLoRA)."""
    if not torch.cuda.is_available():
        raise UserError(f"model.quantize: '{kind}' needs a CUDA device; use 'none' on this machine")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise UserError(
            f"model.quantize: '{kind}' needs bitsandbytes: pip install 'fedsdr[quantize]'"
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


def _converted(gguf: Path) -> Path:
    """Return a folder with the dequantised fp32 weights of a .gguf file, converted once.

    transformers takes about 15 s to read a .gguf, and under 1 s to read the copy.
    """
    folder = cache_folder() / "models" / f"{gguf.stem}-{hash_file(gguf)[:12]}"
    return made_once(folder, functools.partial(_convert, gguf))


def _convert(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with library_errors(str(gguf)), size_limit(str(gguf), stored_in_gguf(gguf)):
        where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        loaded: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, **_CHECKED)
        model, info = loaded
        tokenizer = AutoTokenizer.from_pretrained(**where)
    check_weights(str(gguf), model, info)
    # The model is plain fp32 now; transformers refuses to save one marked as quantised.
    model.hf_quantizer = None
    del model.config.quantization_config
    for attribute in ("is_quantized", "quantization_method"):
        if hasattr(model, attribute):
            delattr(model, attribute)

    def write(temporary: Path) -> None:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)

    write_folder(folder, write)
