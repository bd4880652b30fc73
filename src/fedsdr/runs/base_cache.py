"""What the base model gave, kept in the cache by all that it depends on."""

from collections.abc import Callable
from hashlib import sha256
from typing import Any

import torch

import fedsdr
from fedsdr.files import kept_json
from fedsdr.models.packing import device_of
from fedsdr.runs.client_runtime import ClientRuntime


def kept_of_base(runtime: ClientRuntime, kind: str, about: object, make: Callable[[], Any]) -> Any:
    """Return the JSON value that `make` gives, from the cache where it was made before.

    `about` is all that it depends on besides the base, its template, the machine and the versions.
    """
    config = runtime.config
    depends_on = (
        *(fedsdr.__version__, torch.__version__, torch.backends.cpu.get_cpu_capability()),
        *(device_of(runtime.base.model).type, torch.get_num_threads()),
        *(runtime.base.fingerprint, config.model.dtype, config.model.quantize),
        *(runtime.renderer.fingerprint, config.data.max_length, config.train.pack_tokens, about),
    )
    name = sha256(repr(depends_on).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return kept_json(runtime.cache / kind / f"{name}.json", make, private=True)
