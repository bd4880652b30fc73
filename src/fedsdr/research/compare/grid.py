"""The cells of a comparison: one run for each variant, algorithm, sweep point, draw and seed."""

import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from fedsdr.algorithms import ALGORITHMS
from fedsdr.config import CompareConfig, Config, key_names, nested, value_of, with_values
from fedsdr.distill.filters import ASKS_AGAIN
from fedsdr.errors import UserError, choose
from fedsdr.research.compare.differences import FORWARD_SHARE, Group
from fedsdr.runs.config_schema import check_names
from fedsdr.runs.run_plan import client_settings, plan_of
from fedsdr.training.local_training import epochs_of
from fedsdr.training.methods import METHODS
from fedsdr.types import S

_AXES = {"seed": "seeds", "algorithm.name": "algorithms", "method.name": "methods"}  # not swept


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    group: Group
    config: Config
    root: Path = Path("/")  # a cell keeps its name when this folder is moved with the data in it

    @property
    def name(self) -> str:
        """METHOD-ALGORITHM-seedN-HASH, a hash of every value that defines the run."""
        return self._named({key: _relative(v, self.root) for key, v in self._values().items()})

    def folder_in(self, out: Path) -> Path:
        """Return the cell's folder in `out`; 0.1.0 named it by a hash of absolute paths."""
        old = out / "cells" / self._named(self._values())
        return old if old.exists() else out / "cells" / self.name

    def _values(self) -> dict[str, Any]:
        """Without [engine] and [log], which change no number, and without defaults, so that a key
        added by a later version does not rename every folder."""
        keys = [key for key in key_names() if not key.startswith(("engine.", "log."))]
        values = {key: value_of(self.config, key) for key in keys}
        return {key: value for key, value in values.items() if value != value_of(Config(), key)}

    def _named(self, values: Mapping[str, Any]) -> str:
        config = self.config
        digest = sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]
        return f"{config.method.name}-{config.algorithm.name}-seed{config.seed}-{digest}"

    def __str__(self) -> str:
        return f"{self.group}, data.seed {self.config.data.seed}, seed {self.config.seed}"


def cells_of(
    config: Config,
    study: CompareConfig,
    folder: Path,
    out: Path | None = None,
    tuned: Mapping[Group, Mapping[str, Any]] | None = None,
) -> list[Cell]:
    """Return every cell, draw by draw; paths in `study` are relative to `folder`, the study file's.

    A cell is found again after the folder that holds both the study file and `out` was moved.
    `tuned` has the values that `research.compare.tuning` picked; a group that it lacks has no cell.
    UserError as `groups_of`.
    """
    seeds = _distinct(study.seeds, config.seed, "seeds")
    root = root_of(folder, out)
    cells = []
    groups = groups_of(config, study, folder)
    for draw in range(study.draws):
        for group, own in groups.items():
            if tuned is not None and group not in tuned:
                continue
            own = with_keys(own, (tuned or {}).get(group, {}), folder)
            values = {"data.seed": own.data.seed + draw}
            cells += [Cell(group, _with(own, values | {"seed": seed}), root) for seed in seeds]
    return cells


def groups_of(config: Config, study: CompareConfig, folder: Path) -> dict[Group, Config]:
    """Return the configuration of each variant, algorithm and sweep point.

    The baseline is included if it is a method's name. Each variant with several phases is
    accompanied by `plain` with as many rounds, and by `plain at equal compute`, with as many local
    epochs as its phases have in all. UserError for an unknown name, key or baseline, and for an
    empty list.
    """
    algorithms = _distinct(study.algorithms, config.algorithm.name, "algorithms")
    variants = _variants(config, study)
    if study.baseline not in variants and study.baseline in METHODS:
        variants[study.baseline] = nested("method.name", study.baseline)
    if (study.draws > 1 or study.tune) and "data.seed" in _flat(study.sweep):
        raise UserError("sweep data.seed: compare.draws and tune choose it; use compare.draws")
    groups = {}
    for algorithm, point in itertools.product(algorithms, points_of(config, study.sweep, folder)):
        choose(algorithm, ALGORITHMS, "algorithms")
        configs = {}
        for name, table in variants.items():
            own = with_values(config, table, f"variant '{name}'", folder)
            own = _with(own, {"algorithm.name": algorithm})
            choose(own.method.name, METHODS, f"variant '{name}': method.name")
            configs[name] = with_keys(own, dict(point), folder)
        _check_same_rows(configs)
        # A list among the values could not be part of a key.
        shown = tuple((k, ", ".join(v) if isinstance(v, list) else v) for k, v in point)
        for name, own in _with_plain(configs).items():
            check_names(own)  # with the next line, before the first cell runs
            plan_of(own, {})
            groups[Group(name, algorithm, shown)] = own
    choose(study.baseline, dict.fromkeys(group.variant for group in groups), "baseline")
    return groups


def root_of(folder: Path, out: Path | None) -> Path:
    """Return the folder that holds both the study file and `out`."""
    root = Path(os.path.commonpath([os.path.abspath(folder), os.path.abspath(out or folder)]))
    return root if root != Path(root.anchor) else Path(os.path.abspath(folder))


def with_keys(config: Config, values: Mapping[str, Any], folder: Path) -> Config:
    """Return `config` with other values, and the default for keys that its run does not read."""
    for key, value in values.items():
        config = with_values(config, nested(key, value), f"compare: {key}", folder)
    return _without_unread(config)


def is_path(value: object) -> bool:
    """Return whether a configuration's value is an absolute path, or a list of them."""
    if isinstance(value, list):
        return bool(value) and all(is_path(item) for item in value)
    return isinstance(value, str) and os.path.isabs(value)


def _relative(value: Any, root: Path) -> Any:
    if not is_path(value):
        return value
    if isinstance(value, list):
        return [_relative(item, root) for item in value]
    path = Path(value)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else value


def _with(config: Config, values: Mapping[str, Any]) -> Config:
    for key, value in values.items():
        config = with_values(config, nested(key, value), "compare", Path())
    return config


def _distinct(given: Sequence[Any] | None, otherwise: Any, what: str) -> list[Any]:
    """Return the distinct values of a list, or the configuration's own value if there is none."""
    if given is not None and not given:
        raise UserError(f"{what}: the list is empty; name at least one or leave it out")
    return list(dict.fromkeys([otherwise] if given is None else given))


def _variants(config: Config, study: CompareConfig) -> dict[str, dict[str, Any]]:
    """Return the keys that each method and each named variant sets."""
    only_variants = study.methods is None and study.variants
    methods = [] if only_variants else _distinct(study.methods, config.method.name, "methods")
    for name in methods:
        choose(name, METHODS, "methods")
    found: dict[str, dict[str, Any]] = {name: nested("method.name", name) for name in methods}
    for table in study.variants:
        name = table.get("name")
        if not isinstance(name, str) or not name:
            raise UserError(f'compare.variants: {table} has no name = "..."')
        if name in found:
            raise UserError(f"compare.variants: two are called '{name}'; rename one")
        found[name] = {key: value for key, value in table.items() if key != "name"}
        for key in sorted({"seed", "algorithm.name"} & set(_flat(found[name]))):
            raise UserError(f"variant '{name}': '{key}' is set by compare.{_AXES[key]}")
    return found


def with_given(
    study: CompareConfig,
    *,
    methods: Sequence[str] | None,
    sweep: Mapping[str, Sequence[Any]],
    **given: Any,
) -> CompareConfig:
    """Return the study with these values instead of its own; None keeps its own.

    `methods` may name variants of the study; those that it does not name are left out. `sweep` is
    added to the study's.
    """
    study = replace(study, sweep=study.sweep | {key: list(of) for key, of in sweep.items()})
    if methods is not None:
        kept = [table for table in study.variants if table.get("name") in methods]
        others = [name for name in methods if name not in {table["name"] for table in kept}]
        study = replace(study, methods=None if kept and not others else others, variants=kept)
    return replace(study, **{key: value for key, value in given.items() if value is not None})


def points_of(
    config: Config, sweep: Mapping[str, Any], folder: Path
) -> list[tuple[tuple[str, Any], ...]]:
    """Return every combination of the values of `sweep`, as (key, value) pairs."""
    axes = []
    for key, values in _flat(sweep).items():
        if key in _AXES:
            raise UserError(f"sweep {key}: use compare.{_AXES[key]} (--{_AXES[key]})")
        if not isinstance(values, list) or not values:
            raise UserError(f"sweep {key}: takes a list of at least one value")
        found = []
        for value in values:
            taken = value_of(with_values(config, nested(key, value), f"sweep {key}", folder), key)
            found += [] if taken in found else [taken]
        axes.append([(key, value) for value in found])
    return list(itertools.product(*axes))


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"a.b": value} for {"a": {"b": value}}."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        below = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{key}.") if below else {f"{prefix}{key}": value}
    return flat


def _check_same_rows(configs: Mapping[str, Config]) -> None:
    """UserError unless all variants are measured on the same test rows, tokens and answers."""
    keys = [key for key in key_names() if key.startswith("data.")]
    keys += ["model.name", "model.revision", "model.template", "evaluation.max_new_tokens"]
    (first, like), *others = configs.items()
    for (name, own), key in itertools.product(others, keys):
        if value_of(own, key) != value_of(like, key):
            raise UserError(
                f"variant '{name}': '{key}' differs from that of '{first}', so they would not be "
                f"measured on the same rows, tokens or answers; use --sweep {key}=..."
            )
    if not like.data.test_fraction:
        raise UserError("data.test_fraction: is 0; runs are compared on test rows, so raise it")


def _without_unread(config: Config) -> Config:
    """Return `config` with the default for each key that its data, method and algorithm ignore.

    So a sweep over such a key runs a method once, and hyperparameters of one server optimizer do
    not split the runs of another.
    """
    method, algorithm = METHODS[config.method.name], ALGORITHMS[config.algorithm.name]
    read = {
        "name",
        "aggregation",
        "malicious_share",
        *algorithm.hyperparameters,
        *(["mu"] if algorithm.correction == "fedprox" else []),
    }
    unread = [k for k in key_names() if k.startswith("algorithm.") and k[10:] not in read]
    if S not in {phase.train for phase in method.all_phases}:
        unread += ["method.s_reset", "method.s_dropout", "train.smooth_epochs"]
    read_by = {
        "method.mixture": {"mixture"},
        "train.mask_perplexity": {"masked"},
        "train.anchor_beta": {"anchored"},
        "train.distill_weight": {"distilled"},
    }
    used = {use for phase in method.all_phases for use in (phase.data, phase.loss.name)}
    unread += [key for key, uses in read_by.items() if not uses & used]
    if not config.data.source:
        unread += ["data.partition", "data.alpha", "data.num_clients"]
    elif config.data.partition in ("iid", "category"):
        unread += ["data.alpha"]
    if config.privacy.mode == "none":
        unread += [k for k in key_names() if k.startswith("privacy.")]
    if not method.rewrites:
        unread += [k for k in key_names() if k.startswith("teacher.") and k != "teacher.cache"]
    elif config.teacher.filter not in ASKS_AGAIN:
        unread += ["teacher.attempts"]
    return _with(config, {key: value_of(Config(), key) for key in unread})


def _with_plain(configs: Mapping[str, Config]) -> dict[str, Config]:
    """Return `configs`, and plain at equal rounds and at equal compute beside several phases."""
    method = {key: value_of(Config(), key) for key in key_names() if key.startswith("method.")}
    found = dict(configs)
    for name, config in configs.items():
        phases = METHODS[config.method.name].all_phases
        if len(phases) < 2:
            continue
        passes: float = sum(epochs_of(phase, client_settings(config)) for phase in phases)
        passes += FORWARD_SHARE * sum(bool(phase.loss.reference) for phase in phases)  # teachers
        plain = _with(config, method | {"method.name": "plain"})
        equal = _with(plain, {"train.local_epochs": math.ceil(passes)})
        for title, beside in (("plain", plain), ("plain at equal compute", equal)):
            beside = _without_unread(beside)
            if beside not in found.values():
                found[title if title not in found else f"{title} with {name}"] = beside
    return found
