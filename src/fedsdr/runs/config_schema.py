"""The registry behind each configuration key that names one of its entries, and the JSON schema.

The command line, docs/reference.md and editors take the choices of a key from here.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from fedsdr.algorithms import ALGORITHMS
from fedsdr.algorithms.aggregation import AGGREGATIONS
from fedsdr.algorithms.learning_rate import SCHEDULES
from fedsdr.config import CompareConfig, Config, value_of
from fedsdr.data.chat_templates import LAYOUTS
from fedsdr.data.partition import PARTITIONERS
from fedsdr.distill.filters import FILTERS
from fedsdr.errors import UserError, choose
from fedsdr.models.lora_layers import INITS
from fedsdr.teachers.choice import ENGINES
from fedsdr.training.methods import METHODS
from fedsdr.training.optimizers import OPTIMIZERS

REGISTRIES: dict[str, Mapping[str, object]] = {
    "model.template": {"auto": None, **LAYOUTS},
    "data.partition": PARTITIONERS,
    "method.name": METHODS,
    "algorithm.name": ALGORITHMS,
    "train.optimizer": OPTIMIZERS,
    "train.schedule": SCHEDULES,
    "lora.init": INITS,
    "algorithm.aggregation": AGGREGATIONS,
    "teacher.engine": dict.fromkeys(("auto", *ENGINES)),
    "teacher.filter": FILTERS,
}
# PEFT's initialisations that two branches on one frozen base cannot have.
_TAKES = "takes its factors out of the base, which both branches and the rewriting model share"
_READS = "needs rows before round 1, and those of a client are private"
NO_INIT = {
    "pissa": _TAKES, "olora": _TAKES, "loftq": _TAKES, "corda": _TAKES, "eva": _READS,
    "lora_ga": _READS,
}  # fmt: skip


def check_names(config: Config) -> None:
    """Raise UserError for a key whose name is not in its registry, listing the choices."""
    if why := NO_INIT.get(config.lora.init):
        raise UserError(f"lora.init: '{config.lora.init}' {why}; choose from: {', '.join(INITS)}")
    for key, registry in REGISTRIES.items():
        choose(value_of(config, key), registry, key)


def config_schema() -> dict[str, Any]:
    """Return the JSON schema of a configuration file; each section is an object in `properties`."""
    schema = TypeAdapter(Config).json_schema()
    sections, properties = schema.pop("$defs"), schema["properties"]
    for name, value in properties.items():
        properties[name] = sections[value["$ref"].split("/")[-1]] if "$ref" in value else value
    one = properties["clients"]["additionalProperties"]
    properties["clients"]["additionalProperties"] = sections[one["$ref"].split("/")[-1]]
    properties["compare"] = TypeAdapter(CompareConfig).json_schema()
    for key, registry in REGISTRIES.items():
        section, name = key.split(".")
        properties[section]["properties"][name]["enum"] = list(registry)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
