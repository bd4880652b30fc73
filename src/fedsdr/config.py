"""Read and write configurations: a TOML or YAML file and `--set` overrides -> `Config`.

Every problem is a UserError of one line that names the file or override, the key, its value and
what is allowed, and the nearest key for a typo. A relative path in a file is relative to that
file; one in an override, to the working directory.
"""

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from fedsdr.config_keys import (
    AlgorithmConfig,
    ClientConfig,
    CompareConfig,
    Config,
    DataConfig,
    Dtype,
    EngineConfig,
    EvaluationConfig,
    FederationConfig,
    LoraConfig,
    MethodConfig,
    ModelConfig,
    PrivacyConfig,
    TeacherConfig,
    TrainConfig,
)
from fedsdr.errors import UserError, nearest
from fedsdr.files import write_atomically
from fedsdr.toml_yaml import check_plain, parse_value, read_table, shown

__all__ = [
    "AlgorithmConfig", "CompareConfig", "Config", "DataConfig", "Dtype", "EngineConfig",
    "EvaluationConfig", "FederationConfig", "LoraConfig", "MethodConfig", "ModelConfig",
    "PrivacyConfig", "TeacherConfig", "TrainConfig", "key_names", "load_config", "load_study",
    "nested", "parse_value", "read_table", "save_config", "to_toml", "value_of", "with_values",
    "without_password",
]  # fmt: skip

_PATHS = (
    "model.name", "data.clients", "data.source", "teacher.model", "teacher.prompts",
    "teacher.cache",
)  # fmt: skip
_NAMES = ("model.name", "teacher.model")  # a path only where it looks like one or exists
# Keys of earlier versions -> the only value that still means the same.
_REMOVED = {"lora.frozen_dropout": False, "compare.reference": ""}
# Our key -> its names in transformers, PEFT, TRL and Flower.
_FOREIGN = {
    "train.lr": "learning_rate client_lr", "train.local_epochs": "num_train_epochs num_epochs",
    "train.optimizer": "optim optimizer", "train.schedule": "lr_scheduler_type lr_scheduler",
    "train.warmup_rounds": "warmup_steps warmup_ratio",
    "train.batch_size": "per_device_train_batch_size train_batch_size gradient_accumulation_steps",
    "train.checkpointing": "gradient_checkpointing", "model.dtype": "torch_dtype bf16 fp16",
    "evaluation.batch_size": "per_device_eval_batch_size eval_batch_size",
    "data.max_length": "max_seq_length max_seq_len model_max_length cutoff_len",
    "data.source": "dataset dataset_name dataset_path train_file data_path",
    "data.alpha": "dirichlet_alpha", "data.num_clients": "num_partitions num_supernodes",
    "data.per_client": "num_classes_per_partition num_shards_per_partition",
    "data.sizes": "partition_sizes", "data.columns": "dataset_text_field partition_by",
    "model.name": "model_name_or_path base_model_name_or_path base_model model_name",
    "model.quantize": "load_in_4bit load_in_8bit", "lora.rank": "r lora_r lora_rank",
    "lora.alpha": "lora_alpha", "lora.dropout": "lora_dropout", "lora.rslora": "use_rslora",
    "lora.init": "init_lora_weights", "algorithm.mu": "proximal_mu",
    "lora.target_modules": "lora_target_modules", "algorithm.name": "strategy",
    "federation.rounds": "num_rounds num_server_rounds",
    "federation.clients_per_round": "fraction_fit fraction_train min_fit_clients",
    "algorithm.lr": "server_lr server_learning_rate",
    "algorithm.malicious_share": "num_malicious_nodes num_malicious_clients",
}  # fmt: skip
# Why we have none -> names there.
_ABSENT = {
    "use the option --out DIR": "output_dir",
    "set train.local_epochs and federation.rounds": "max_steps",
    "every round is logged and saved": "logging_steps eval_steps save_steps eval_strategy",
    "both branches are plain LoRA adapters": "bias task_type",
    "DoRA normalises W0 + BA as a whole, so that two branches would not add up": "use_dora",
    "a branch is low-rank: a head would be sent whole, and two cannot add up": "modules_to_save",
}  # fmt: skip
# What pydantic's types of errors want; those on bounds and choices say it in their own text.
_WANTED = {
    "bool_type": "true or false", "int_type": "an integer", "float_type": "a number",
    "string_type": "text", "list_type": "a list", "dict_type": "a table",
    "too_short": "a list that is not empty", "string_too_short": "text that is not empty",
}  # fmt: skip


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML or YAML file and apply `a.b=value` overrides (TOML values; a bare word is text).

    Names of registries are not checked here: see runs/config_schema.py. Raises UserError.
    """
    return load_study(path, overrides)[0]


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Config, CompareConfig]:
    """Read a file as `load_config` does, and its [compare] section."""
    path = Path(path)
    table = read_table(path, "create one with: fedsdr init DIR")
    compare = table.pop("compare", {})
    study = _merge(CompareConfig(), compare, str(path), path.parent, "compare.")
    config = with_values(Config(), table, str(path), path.parent)
    for override in overrides:
        key, equals, text = override.partition("=")
        where = f"--set {override if len(override) < 100 else shown(override)}"
        if not equals:
            raise UserError(f"{where}: expected key=value")
        config = with_values(config, nested(key.strip(), parse_value(text)), where, Path())
    return config, study


def with_values(config: Config, table: Mapping[str, Any], where: str, folder: Path) -> Config:
    """Return `config` with the nested keys of `table` replaced, paths relative to `folder`.

    Raises UserError, starting with `where`, for an unknown key or a value that is not allowed.
    """
    check_plain(table, where)
    return _merge(config, table, where, folder)


def to_toml(config: Config) -> str:
    """Return every value, resolved, as TOML: running the text again repeats the run.

    The password that `teacher.url` may hold is left out.
    """
    teacher = replace(config.teacher, url=without_password(config.teacher.url))
    safe = replace(config, teacher=teacher)
    return tomli_w.dumps(
        asdict(safe, dict_factory=lambda pairs: {k: v for k, v in pairs if v not in (None, {})})
    )


def save_config(config: Config, path: Path) -> None:
    """Write `to_toml(config)` to a file."""
    write_atomically(path, to_toml(config))


def without_password(url: str) -> str:
    """Return a URL without its user name and password."""
    return re.sub(r"(?<=//)[^/?#]*@", "", url)


def key_names(of: Any = Config, prefix: str = "") -> list[str]:
    """Return every key that a user can set, as `a.b`."""
    names: list[str] = []
    for f in fields(of):
        key = prefix + f.name
        names += key_names(f.type, f"{key}.") if is_dataclass(f.type) else [key]
    return names


def value_of(config: Config, key: str) -> Any:
    """Return the value of `a.b`."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def nested(key: str, value: Any) -> dict[str, Any]:
    """Return {"a": {"b": value}} for `a.b`."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _merge(value: Any, table: Any, where: str, folder: Path, prefix: str = "") -> Any:
    """Return the dataclass `value` with the keys of `table` replaced; every key must exist."""
    if not isinstance(table, Mapping | None):
        section = prefix.rstrip(".")
        raise UserError(f"{where}: '{section}' is a section: write [{section}] and its keys")
    names, changed = {f.name for f in fields(value)}, {}
    for name, new in (table or {}).items():  # a YAML section without keys is None
        key = prefix + name
        if key in _REMOVED:
            if new != _REMOVED[key]:
                raise UserError(f"{where}: '{key}' no longer exists; delete the line")
            continue
        if name not in names:
            raise UserError(f"{where}: unknown key {shown(key)}{_hint(key)}")
        old = getattr(value, name)
        if key == "clients" and isinstance(new, Mapping):
            named = {n: _merge(old.get(n, ClientConfig()), t, where, folder, f"clients.{n}.")
                     for n, t in new.items()}  # fmt: skip
            changed[name] = {**old, **named}
        elif is_dataclass(old):
            changed[name] = _merge(old, new, where, folder, f"{key}.")
        elif key == "data.columns" and isinstance(new, Mapping):
            changed[name] = {**old, **new}
        else:
            changed[name] = _absolute(new, folder, key, where) if key in _PATHS else new
    try:
        return replace(value, **changed)
    except ValidationError as error:
        raise UserError(f"{where}: {_complaint(error, prefix)}") from None


def _hint(key: str) -> str:
    """Return what to write in the place of an unknown key, starting with "; "."""
    known = key_names() + key_names(CompareConfig, "compare.")
    if key in ("compare", *known):
        return "; write [compare] in the file or use the options of fedsdr compare"
    leaf = key.rpartition(".")[2].lower().replace("-", "_")
    if same := [name for name in known if name.rpartition(".")[2] == leaf]:
        return f"; did you mean {' or '.join(map(repr, same))}?"
    for ours, names in (_FOREIGN | _ABSENT).items():
        if leaf in names.split():
            return f"; here it is '{ours}'" if ours in _FOREIGN else f"; {ours}"
    return nearest(key, [*known, *(f.name for f in fields(Config)), "compare"])


def _complaint(error: ValidationError, prefix: str) -> str:
    """Return, for the first wrong key of a section, the key, its value and what is allowed."""
    found = error.errors()
    name = found[0]["loc"][0]
    # Each alternative of a union complains. The one that was meant got furthest: to an item of a
    # list, or past the type to the bounds.
    ranks = [(e["loc"][0] == name, len(e["loc"]), not e["type"].endswith("_type")) for e in found]
    best = max(ranks)
    found = [e for e, rank in zip(found, ranks, strict=True) if rank == best]
    wanted = [_WANTED.get(e["type"], e["msg"].removeprefix("Input should be ")) for e in found]
    item = "".join(f"[{i}]" for i in found[0]["loc"][1:] if isinstance(i, int))
    allowed, value = " or ".join(dict.fromkeys(wanted)), found[0]["input"]
    close = nearest(str(value), re.findall(r"'([^']+)'", allowed))
    return f"'{prefix}{name}{item}' is {shown(value)}; it must be {allowed}{close}"


def _absolute(value: Any, folder: Path, key: str, where: str) -> Any:
    """Resolve a path, or each in a list; `embedded:...`, `hub:...` and hub ids stay as they are."""
    if isinstance(value, list):
        return [_absolute(v, folder, key, where) if isinstance(v, str) else v for v in value]
    if not isinstance(value, str) or not value or value.startswith(("embedded:", "hub:")):
        return value
    try:
        path = os.path.abspath(folder / Path(value).expanduser())
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            os.stat(path)  # whether a file can have this name at all
    except (OSError, RuntimeError) as error:  # RuntimeError: ~user of an unknown user
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{where}: '{key}' is {shown(value)}: {reason}") from None
    is_path = value.startswith((".", "/", "~")) or value.endswith(".gguf") or os.path.exists(path)
    return value if key in _NAMES and not is_path else path
