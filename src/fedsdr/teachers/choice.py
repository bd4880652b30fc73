"""Choose the engine that generates rewrites."""

import shutil
from pathlib import Path

from fedsdr.errors import choose
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


def choose_engine(name: str, *, model_path: str | Path | None, cuda: bool) -> tuple[str, str]:
    """Return the engine for `teacher.engine = name` and the reason, in one line.

    "auto" is the fastest installed engine that can read the model: `model_path` is its file or
    folder, None if it is not on disk; `cuda` says whether it runs on a CUDA device. UserError for
    an unknown name; whether a named engine is usable is checked when it is built.
    """
    choose(name, dict.fromkeys(("auto", *ENGINES)), "teacher.engine")
    if name != "auto":
        return name, "set by teacher.engine"
    if cuda:
        if is_installed("vllm"):
            return "vllm", "CUDA is available and vllm is installed"
        return "transformers", "CUDA is available, vllm is not installed"
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
