"""Generation engines beside plain transformers; each module has one function -> `Generate`.

What holds for all: the prompt is the one that the caller renders (an endpoint renders its own),
the text has no special tokens, `new_tokens` counts the end-of-turn token, and each request has
its own seed. Transformers, vLLM and OpenVINO 2026.4 cut top-p last, from what temperature and
top-k left (older OpenVINO cuts it before top-k; an endpoint does as it likes). But each draws from
a random generator of its own: the same seed gives other text in another engine.
"""

import shutil
from pathlib import Path

from fedsdr.errors import choose
from fedsdr.extras import is_installed
from fedsdr.teachers.openvino import why_unreadable
from fedsdr.teachers.openvino_export import COMMAND

ENGINES = ("transformers", "openvino", "vllm", "openai")


def choose_engine(name: str, *, model_path: str | Path | None, cuda: bool) -> tuple[str, str]:
    """Return the engine for `teacher.engine = name` and the reason, in one line.

    `model_path` is the file or folder that OpenVINO would be given, None when there is none on
    disk; `cuda`: the model runs on a CUDA device. "auto" takes the fastest engine that is
    installed and reads the model. Any other known name is taken as it is (what it needs is
    checked when it is built); an unknown one raises UserError with the nearest.
    """
    choose(name, dict.fromkeys(("auto", *ENGINES)), "teacher.engine")
    if name != "auto":
        return name, "named by teacher.engine"
    if cuda:
        if is_installed("vllm"):
            return "vllm", "CUDA is present and vllm is installed"
        return "transformers", "CUDA is present, vllm is not installed"
    if model_path is None:
        return "transformers", "no model file on disk that openvino could read"
    problem = why_unreadable(model_path)
    if problem and Path(model_path).is_dir() and shutil.which(COMMAND):
        problem = ""  # an export of the folder will be read
    if problem:
        return "transformers", f"openvino cannot read the model: {problem}"
    if not is_installed("openvino_genai"):
        return "transformers", "openvino_genai is not installed: pip install -e '.[openvino]'"
    return "openvino", "no CUDA, and openvino reads the model"
