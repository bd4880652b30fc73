"""A configuration as Flower's run configuration, whose values are words and numbers, and back.

A list is written as JSON, and what is unset as "". Beside the keys of config.py there are three:
`out`, the server's folder of the run; `experiment`, under which a site keeps its own, "" in a
simulation; and `resume`.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsdr.config import Config, key_names, value_of, with_values

Scalar = bool | int | float | str
RunConfig = dict[str, Scalar]

RUN_ID = "run_id"  # a file in the folder of the server and of each site: which run they are of

OWN_KEYS: RunConfig = {"out": "", "experiment": "", "resume": False}  # and their defaults

# What this app never takes from the server: where a site's rows are and go, what code of a hub it
# runs.
SITE_KEYS = (
    "data.clients", "data.include", "data.source", "model.device", "model.trust_remote_code",
    "teacher.engine", "teacher.model", "teacher.url", "teacher.api_key_env",
    "teacher.allow_remote", "teacher.prompts", "teacher.cache",
)  # fmt: skip


def to_run_config(config: Config) -> RunConfig:
    """Return every key of a configuration as `a.b` -> scalar."""
    return {key: _to_scalar(value_of(config, key)) for key in key_names()}


def from_run_config(values: Mapping[str, Scalar], without: Sequence[str] = ()) -> Config:
    """Return the configuration of a run's `a.b` -> scalar; keys in `without` keep their defaults.

    UserError for an unknown key or a value that it does not take.
    """
    kept = {key: value for key, value in values.items() if key not in without}
    return with_scalars(Config(), kept, "run configuration")


def with_scalars(config: Config, values: Mapping[str, Scalar], where: str) -> Config:
    """Return `config` with these keys changed; UserError, which begins with `where`, as above."""
    table: dict[str, Any] = {}
    known = set(key_names())
    for key, scalar in values.items():
        if key in OWN_KEYS:
            continue
        value = _from_scalar(scalar, value_of(config, key)) if key in known else scalar
        section, _, name = key.rpartition(".")
        (table.setdefault(section, {}) if section else table)[name] = value
    return with_values(config, table, where, Path.cwd())


def _to_scalar(value: object) -> Scalar:
    if value is None:
        return ""
    return value if isinstance(value, (bool, int, float, str)) else json.dumps(value)


def _from_scalar(scalar: Scalar, now: object) -> object:
    if scalar == "" and not isinstance(now, str):
        return None
    with contextlib.suppress(ValueError):  # a word: whether the key takes it is said elsewhere
        if isinstance(scalar, str) and scalar.startswith("["):
            return json.loads(scalar)
    return scalar
