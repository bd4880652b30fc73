"""Conversion between a configuration and Flower's run configuration, whose values are scalars.

A list is written as JSON, and an unset value as "". Besides the keys of config.py there are three:
`out`, the server's run folder; `experiment`, the name under which a site keeps its state ("" in a
simulation); and `resume`.
"""

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedsdr.config import Config, key_names, value_of, with_values

Scalar = bool | int | float | str
RunConfig = dict[str, Scalar]

RUN_ID = "run_id"  # a file in the folder of the server and of each site: the run they belong to

OWN_KEYS: RunConfig = {"out": "", "experiment": "", "resume": False}  # and their defaults

# Keys that a site never takes from the server: its data, its device and teacher, and whether code
# from a model hub may run there.
SITE_KEYS = (
    "data.clients", "data.include", "data.source", "data.columns", "model.device",
    "model.trust_remote_code", "teacher.engine", "teacher.model", "teacher.url",
    "teacher.api_key_env", "teacher.allow_remote", "teacher.prompts", "teacher.cache",
)  # fmt: skip


def to_run_config(config: Config) -> RunConfig:
    """Return every key of a configuration as `a.b` -> scalar."""
    return {key: _to_scalar(value_of(config, key)) for key in key_names()}


def from_run_config(values: Mapping[str, Scalar], without: Sequence[str] = ()) -> Config:
    """Return the configuration of a run's `a.b` -> scalar; keys in `without` keep their defaults.

    UserError for an unknown key or a value of the wrong type.
    """
    kept = {key: value for key, value in values.items() if key not in without}
    return with_scalars(Config(), kept, "run configuration")


def with_scalars(config: Config, values: Mapping[str, Scalar], where: str) -> Config:
    """Return `config` with these keys changed. UserErrors as above, beginning with `where`."""
    known = set(key_names())
    typed = {
        key: _from_scalar(scalar, value_of(config, key)) if key in known else scalar
        for key, scalar in values.items()
        if key not in OWN_KEYS
    }
    return with_values(config, nested(typed), where, Path.cwd())


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `a.b` -> value as tables in a table."""
    table: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (table.setdefault(section, {}) if section else table)[name] = value
    return table


def is_name(name: str) -> bool:
    """Return whether this may be the name of a client or an experiment: it names folders."""
    return bool(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}", name))


def _to_scalar(value: object) -> Scalar:
    if value is None:
        return ""
    return (
        value if isinstance(value, (bool, int, float, str)) else json.dumps(value, default=asdict)
    )


def _from_scalar(scalar: Scalar, current: object) -> object:
    if scalar == "" and not isinstance(current, str):
        return None
    with contextlib.suppress(
        ValueError, RecursionError
    ):  # not a list: the key's own check reports it
        if isinstance(scalar, str) and scalar.startswith(("[", "{")):
            return json.loads(scalar)
    return scalar
