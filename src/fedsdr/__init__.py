"""Federated fine-tuning of language models on data that disagree (FedSDR, arXiv 2605.18028).

    import fedsdr

    run = fedsdr.run(data={"bank": frame, "clinic": "clinic.jsonl"}, method="fedsdr", rounds=5)
    run.results

docs/python.md is its page. `import fedsdr` loads neither torch nor anything else that is slow.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsdr.api.federated_run import Run, load_run, run
    from fedsdr.api.federated_site import Site, open_site
    from fedsdr.api.study import Comparison, compare
    from fedsdr.config import load_config
    from fedsdr.errors import UserError
    from fedsdr.runs.rounds import initial_tensors

__version__ = "0.1.0"
__all__ = [
    "Comparison", "Run", "Site", "UserError", "compare", "initial_tensors", "load_config",
    "load_run", "open_site", "run",
]  # fmt: skip

_PLACES = {
    "Comparison": "fedsdr.api.study",
    "Run": "fedsdr.api.federated_run",
    "Site": "fedsdr.api.federated_site",
    "UserError": "fedsdr.errors",
    "compare": "fedsdr.api.study",
    "initial_tensors": "fedsdr.runs.rounds",
    "load_config": "fedsdr.config",
    "load_run": "fedsdr.api.federated_run",
    "open_site": "fedsdr.api.federated_site",
    "run": "fedsdr.api.federated_run",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'fedsdr' has no attribute '{name}'")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_PLACES]
