"""Choose the engine that generates rewrites."""

import shutil
from pathlib import Path

from fedsdr.errors import UserError, choose
from fedsdr.extras import is_installed
from fedsdr.teachers.openvino import why_unreadable
from fedsdr.teachers.openvino_conversion import COMMAND

# engine -> (required module, package whose version identifies the engine)
ENGINES = {
    "transformers": ("transformers", "transformers"),
    "openvino": ("openvino_genai", "openvino-genai"),
    "vllm": ("vllm", "vllm"),
    "openai": ("openai", "fedsdr"),
}


def choose_engine(
    name: str, *, model_path: str | Path | None, device: str, quantize: str = "none"
) -> tuple[str, str]:
    """Return the engine for `teacher.engine = name` and the reason, in one line.

    "auto" is the fastest installed engine that can read the model: `model_path` is its file or
    folder, None if it is not on disk; `device` and `quantize` are those of the loaded model.
    UserError for an unknown name, and for "vllm" where it would compute another model or on another
    device; whether a named engine can be loaded is checked when it is built.
    """
    choose(name, dict.fromkeys(("auto", *ENGINES)), "teacher.engine")
    not_vllm = _why_not_vllm(device, quantize)
    if name == "vllm" and not_vllm:
        raise UserError(f"teacher.engine: vllm {not_vllm}; set teacher.engine = 'transformers'")
    if name != "auto":
        return name, "set by teacher.engine"
    if device.startswith("cuda"):
        if not_vllm or not is_installed("vllm"):
            return "transformers", f"CUDA is available, vllm {not_vllm or 'is not installed'}"
        return "vllm", "CUDA is available and vllm is installed"
    if model_path is None:
        return "transformers", "no model file on disk for openvino"
    problem = why_unreadable(model_path)
    if problem and Path(model_path).is_dir() and shutil.which(COMMAND):
        problem = ""  # the folder can be exported
    if problem:
        return "transformers", f"openvino cannot read the model: {problem}"
    if not is_installed("openvino_genai"):
        return "transformers", "openvino_genai is not installed: pip install 'fedsdr[openvino]'"
    return "openvino", "no CUDA, and openvino can read the model"


def _why_not_vllm(device: str, quantize: str) -> str:
    """Return what vLLM would do otherwise than the loaded model, or ''."""
    if quantize != "none":
        return f"loads the unquantised files, not model.quantize = '{quantize}'"
    if device not in ("cpu", "cuda", "cuda:0"):
        return f"runs on the first visible GPU, not on {device} (see CUDA_VISIBLE_DEVICES)"
    return ""
