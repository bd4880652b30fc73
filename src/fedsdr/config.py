"""One TOML file -> frozen dataclasses. The keys, their defaults and their meaning are all here.

Every problem is a UserError that names the file and the key, and the nearest key for a typo.
Paths in a file are relative to that file; paths given by `--set` to the working directory.
"""

import dataclasses
import os
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomli_w

from fedsdr.errors import UserError, nearest
from fedsdr.files import write_atomically

Dtype = Literal["auto", "fp32", "bf16", "fp16"]
Template = Literal["auto", "chat", "alpaca"]


@dataclass(frozen=True)
class ModelConfig:
    name: str = "embedded:smollm2-135m-instruct"  # or a hub id, a folder, a .gguf file
    revision: str = ""  # of a hub id
    dtype: Dtype = "auto"
    quantize: Literal["none", "8bit", "4bit"] = "none"
    device: str = "auto"  # auto | cpu | cuda | cuda:1
    template: Template = "auto"
    trust_remote_code: bool = False  # run code that comes with a hub model


@dataclass(frozen=True)
class DataConfig:
    clients: str | list[str] = ""  # a folder with one file a client, or a list of files
    include: list[str] = field(default_factory=list)  # names of clients to use; empty: all
    source: str | list[str] = ""  # one file (or hub data set), split by:
    partition: Literal["iid", "category", "dirichlet", "quantity"] = "dirichlet"
    alpha: float = 0.5  # of dirichlet and quantity; smaller: the clients differ more
    num_clients: int = 8  # that the source is split into
    test_fraction: float = 0.1  # held out at each client before anything else
    max_examples: int = 0  # training rows a client; 0: all
    max_test_examples: int = 0  # test rows a client; 0: all
    max_length: int = 512  # tokens a row
    seed: int = 0  # of who holds which rows; not `seed`: runs of all seeds have the same test rows


@dataclass(frozen=True)
class MethodConfig:
    name: str = "fedsdr"  # plain | fedsd | fedsdr | dual-raw | ... (see docs/method.md)
    mixture: float = 1.0  # fedsd: the share of its rows that are rewrites; the rest stay raw
    s_reset: bool = False  # start S anew every round instead of keeping it
    s_dropout: float = 0.0  # share of the rectify batches whose forward leaves S out


@dataclass(frozen=True)
class AlgorithmConfig:
    name: str = "fedavg"  # fedavgm | fedprox | scaffold | fedadagrad | fedadam | fedyogi
    aggregation: str = "mean"  # how the updates of a round become one
    lr: float | None = None  # server learning rate; unset: the rule's default
    beta: float | None = None  # fedavgm
    b1: float | None = None  # fedadam, fedyogi
    b2: float | None = None  # fedadam, fedyogi
    tau: float | None = None  # fedadagrad, fedadam, fedyogi
    mu: float = 0.01  # fedprox


@dataclass(frozen=True)
class FederationConfig:
    rounds: int = 20  # in all; a finished run goes on when it is raised
    clients_per_round: int = 0  # 0: all
    min_updates: int = 1  # fewer good updates than this end the run
    update_dtype: Literal["fp32", "bf16", "int8"] = "fp32"  # of what goes up (docs/method.md)
    max_update_norm: float = 0.0  # a larger update is refused; 0: none is (compare step_norm)


@dataclass(frozen=True)
class PrivacyConfig:
    mode: Literal["none", "central", "local"] = "none"  # where noise is added (docs/privacy.md)
    clip_norm: float = 1.0  # of what a client sends, all its tensors together
    noise_multiplier: float = 1.0  # standard deviation of the noise / clip_norm
    delta: float = 1e-5  # at which epsilon is told


@dataclass(frozen=True)
class TrainConfig:
    local_epochs: int = 3  # in each stage of a round
    smooth_epochs: int = 0  # 0: as local_epochs; else the epochs of the stages that train S
    batch_size: int = 128  # examples an optimizer step
    lr: float = 3e-4  # of AdamW at the client
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0  # 0: no clipping
    pack_tokens: int = 0  # real tokens in one forward pass; 0: what fits into the free memory
    checkpointing: bool = False  # less memory for one more forward: layers run again in backward


@dataclass(frozen=True)
class LoraConfig:
    rank: int = 8
    alpha: float = 16  # a branch is scaled by alpha / rank
    dropout: float = 0.05  # on the input of the trained branch
    frozen_dropout: bool = False  # dropout on the frozen branch too
    # names of linear layers, or "all-linear"
    target_modules: str | list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])


@dataclass(frozen=True)
class TeacherConfig:
    engine: str = "auto"  # auto | transformers | openvino | vllm | openai
    model: str = ""  # the name an endpoint knows it by; the seed model otherwise
    temperature: float = 0.7  # 0: greedy
    top_p: float = 0.9
    top_k: int = 0  # 0: no cut
    max_new_tokens: int = 256
    filter: Literal["none", "sdft"] = "sdft"  # what happens to a bad rewrite
    prompts: str = ""  # your own prompt file
    seed: int = 0  # of sampling; not `seed`: runs of all seeds share one set of rewrites
    batch_size: int = 32  # answers in the making at once
    url: str = ""  # engine openai
    api_key_env: str = "OPENAI_API_KEY"  # the environment variable that holds the key
    allow_remote: bool = False  # send raw data to an address that is not this machine
    cache: str = ""  # of rewrites; empty: $FEDSDR_CACHE or ~/.cache/fedsdr


@dataclass(frozen=True)
class EvaluationConfig:
    max_new_tokens: int = 128  # of an answer that is scored
    batch_size: int = 32


@dataclass(frozen=True)
class EngineConfig:
    name: Literal["in-process", "flower"] = "in-process"
    # the rest is of flower (docs/deploy.md)
    threads: int = 0  # of a client on the CPU; 0: as PyTorch chooses
    parallel_clients: int = 1  # simulated: clients that train at once, each with a base of its own
    sites: int = 0  # to wait for before round 1; 0: federation.min_updates
    join_seconds: float = 600.0  # to wait for them
    rewrite_seconds: float = 43200.0  # to wait for the rewrites of all sites, before round 1
    round_seconds: float = 3600.0  # to wait for the updates of a round


@dataclass(frozen=True)
class Config:
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)


@dataclass(frozen=True)
class CompareConfig:
    """What `fedsdr compare` varies; the other commands leave it unread."""

    methods: list[str] | None = None  # unset: that of [method]
    algorithms: list[str] | None = None  # unset: that of [algorithm]
    seeds: list[int] | None = None  # unset: `seed`
    sweep: dict = field(default_factory=dict)  # lists of values: data.alpha = [0.1, 0.5]
    variants: list[dict] = field(default_factory=list)  # {name = "S reset", method.s_reset = true}
    baseline: str = "plain"  # a method or variant, from which the differences are taken


# key -> (least, most, what is wrong otherwise)
_BOUNDS: dict[str, tuple[float, float, str]] = {
    "data.test_fraction": (0.0, 0.99, "a share from 0 to 0.99"),
    "data.alpha": (1e-6, 1e9, "above 0"),
    "data.num_clients": (1, 1e9, "at least 1"),
    "data.max_examples": (0, 1e12, "0 (all) or more"),
    "data.max_test_examples": (0, 1e12, "0 (all) or more"),
    "data.max_length": (8, 1e9, "at least 8 tokens"),
    "method.mixture": (0.0, 1.0, "a share from 0 to 1"),
    "method.s_dropout": (0.0, 1.0, "a share from 0 to 1"),
    "federation.rounds": (1, 1e9, "at least 1"),
    "federation.clients_per_round": (0, 1e9, "0 (all) or more"),
    "federation.min_updates": (1, 1e9, "at least 1"),
    "federation.max_update_norm": (0.0, 1e30, "0 (any) or more"),
    "privacy.clip_norm": (1e-9, 1e9, "above 0"),
    "privacy.noise_multiplier": (1e-3, 1e9, "above 0: without noise there is no privacy"),
    "privacy.delta": (1e-300, 0.1, "above 0, at most 0.1"),
    "train.local_epochs": (1, 1e6, "at least 1"),
    "train.smooth_epochs": (0, 1e6, "0 (as local_epochs) or more"),
    "train.batch_size": (1, 1e9, "at least 1"),
    "train.lr": (1e-12, 1e3, "above 0, at most 1000"),
    "train.weight_decay": (0.0, 1e3, "0 or more"),
    "train.max_grad_norm": (0.0, 1e9, "0 (no clipping) or more"),
    "train.pack_tokens": (0, 1e9, "0 (what fits) or more"),
    "lora.rank": (1, 1e5, "at least 1"),
    "lora.alpha": (1e-9, 1e9, "above 0"),
    "lora.dropout": (0.0, 0.99, "a share from 0 to 0.99"),
    "algorithm.mu": (0.0, 1e9, "0 or more"),
    "teacher.temperature": (0.0, 100.0, "0 (greedy) or more"),
    "teacher.top_p": (1e-9, 1.0, "above 0, at most 1"),
    "teacher.top_k": (0, 1e9, "0 (no cut) or more"),
    "teacher.max_new_tokens": (1, 1e9, "at least 1"),
    "teacher.batch_size": (1, 1e9, "at least 1"),
    "evaluation.max_new_tokens": (1, 1e9, "at least 1"),
    "evaluation.batch_size": (1, 1e9, "at least 1"),
    "engine.threads": (0, 4096, "0 (as PyTorch chooses) or more"),
    "engine.parallel_clients": (1, 1e4, "at least 1"),
    "engine.sites": (0, 1e9, "0 (federation.min_updates) or more"),
    "engine.join_seconds": (1, 1e9, "at least 1"),
    "engine.rewrite_seconds": (1, 1e9, "at least 1"),
    "engine.round_seconds": (1, 1e9, "at least 1"),
}
# Keys that hold a path, which is relative to the file that names it.
_PATHS = ("model.name", "data.clients", "data.source", "teacher.prompts", "teacher.cache")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file and apply `a.b=value` overrides (values are TOML; a bare word is text).

    Raises UserError, naming the file or the override and the key, for anything that is not a
    complete and sensible configuration.
    """
    return load_study(path, overrides)[0]


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Config, CompareConfig]:
    """Read a file as `load_config` does, and its [compare] section beside it."""
    path = Path(path)
    table = read_toml(path, "make one with: fedsdr init DIR")
    compare = table.pop("compare", {})
    if not isinstance(compare, Mapping):
        raise UserError(f"{path}: 'compare' is a section: write [compare] and its keys")
    if "reference" in compare:
        raise UserError(f"{path}: 'compare.reference' no longer exists; delete the line")
    study: CompareConfig = _merge(CompareConfig(), compare, str(path), "compare.")
    config: Config = _merge(Config(), table, str(path))
    config = _with_absolute_paths(config, path.parent)
    for override in overrides:
        key, equals, text = override.partition("=")
        where = f"--set {override}"
        if not equals:
            raise UserError(f"{where}: expected key=value")
        table = nested(key.strip(), parse_value(text))
        config = _with_absolute_paths(_merge(config, table, where), Path.cwd())
    _check_bounds(config, str(path))
    return config, study


def read_toml(path: Path, if_missing: str) -> dict[str, Any]:
    """Return what a TOML file holds; UserError, with `if_missing` where there is no such file."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file ({if_missing})") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, not a TOML file") from None
    except (PermissionError, NotADirectoryError) as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None


def with_values(config: Config, table: Mapping[str, Any], where: str, folder: Path) -> Config:
    """Return `config` with the nested keys of `table` put in, paths relative to `folder`.

    UserError, which begins with `where`, for an unknown key or a value that it does not take.
    """
    config = _with_absolute_paths(_merge(config, table, where), folder)
    _check_bounds(config, where)
    return config


def nested(key: str, value: Any) -> dict[str, Any]:
    """Return {"a": {"b": value}} for `a.b`."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def save_config(config: Config, path: Path) -> None:
    """Write every value, resolved, so that running the file again repeats the run."""
    write_atomically(path, tomli_w.dumps(_without_none(dataclasses.asdict(config))))


def key_names(kind: type = Config, prefix: str = "") -> list[str]:
    """Return every key that a user can set, as `a.b`."""
    names: list[str] = []
    for f in dataclasses.fields(kind):
        if dataclasses.is_dataclass(f.type):
            names += key_names(typing.cast(type, f.type), f"{prefix}{f.name}.")
        else:
            names.append(prefix + f.name)
    return names


def parse_value(text: str) -> Any:
    """Return a TOML value; anything else is text."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def _merge(value: Any, table: Mapping[str, Any], where: str, prefix: str = "") -> Any:
    """Return the dataclass `value` with the keys of `table` put in; every key must exist."""
    fields = {f.name: f for f in dataclasses.fields(value)}
    changed: dict[str, Any] = {}
    for name, new in table.items():
        key = prefix + name
        if name not in fields:
            known = key_names(type(value), prefix) if prefix == "compare." else key_names()
            by_leaf = [k for k in known if k.rsplit(".", 1)[-1] == name]
            hint = f"; did you mean '{by_leaf[0]}'?" if by_leaf else nearest(key, known)
            raise UserError(f"{where}: unknown key '{key}'{hint}")
        kind = fields[name].type
        if dataclasses.is_dataclass(kind):
            if not isinstance(new, Mapping):
                raise UserError(f"{where}: '{key}' is a section: write [{key}] and its keys")
            changed[name] = _merge(getattr(value, name), new, where, f"{key}.")
        else:
            changed[name] = _typed(new, kind, key, where)
    return dataclasses.replace(value, **changed)


def _typed(value: Any, kind: Any, key: str, where: str) -> Any:
    """Return `value` if it is of the declared type, an integer widened to a float if need be."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value in args:
            return value
        close = nearest(str(value), [str(a) for a in args])
        raise UserError(f"{where}: '{key}' is {value!r}, not one of {', '.join(args)}{close}")
    options = args if origin in (typing.Union, types.UnionType) else (kind,)
    for option in options:
        element = typing.get_args(option)
        if element and isinstance(value, list) and all(type(v) is element[0] for v in value):
            return value
        if type(value) is option:
            return value
        if option is float and type(value) is int:
            return float(value)
    words = {
        str: "text in quotes", int: "a whole number", float: "a number", bool: "true or false",
        list[str]: "a list of texts", list[int]: "a list of whole numbers", dict: "a table",
        list[dict]: "a list of tables",
    }  # fmt: skip
    wanted = " or ".join(words[o] for o in options if o is not type(None))
    raise UserError(f"{where}: '{key}' is {value!r}; it takes {wanted}")


def value_of(config: Config, key: str) -> Any:
    """Return the value of `a.b`."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _check_bounds(config: Config, where: str) -> None:
    for key, (least, most, wanted) in _BOUNDS.items():
        value = value_of(config, key)
        if not least <= value <= most:
            raise UserError(f"{where}: '{key}' is {value}; it must be {wanted}")
    if not config.lora.target_modules:
        raise UserError(f"{where}: 'lora.target_modules' is empty; name modules or \"all-linear\"")


def _with_absolute_paths(config: Config, folder: Path) -> Config:
    """Make the paths absolute that exist as files under `folder` or look like paths."""
    for key in _PATHS:
        value = value_of(config, key)
        resolved: Any = (
            [_absolute(v, folder, key) for v in value]
            if isinstance(value, list)
            else _absolute(value, folder, key)
        )
        if resolved != value:
            section, name = key.split(".")
            part = dataclasses.replace(getattr(config, section), **{name: resolved})
            config = dataclasses.replace(config, **{section: part})
    return config


def _absolute(value: str, folder: Path, key: str) -> str:
    """A hub id such as `org/name` and `embedded:...` stay; anything that is a path is resolved."""
    if not value or value.startswith(("embedded:", "hub:")):
        return value
    path = Path(value).expanduser()
    if key == "model.name" and not (folder / path).exists() and path.suffix != ".gguf":
        looks_local = value.startswith((".", "/", "~"))
        return os.path.abspath(folder / path) if looks_local else value
    return os.path.abspath(folder / path)


def _without_none(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        k: _without_none(v) if isinstance(v, dict) else v for k, v in tree.items() if v is not None
    }
