"""The cells of a comparison: which runs there are, and what each one's configuration is."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from fedsdr.algorithms import ALGORITHMS
from fedsdr.config import (
    CompareConfig,
    Config,
    MethodConfig,
    key_names,
    nested,
    value_of,
    with_values,
)
from fedsdr.errors import UserError, choose
from fedsdr.research.compare.differences import Group
from fedsdr.runs.run import plan_of, settings_of
from fedsdr.training.local_training import epochs_of
from fedsdr.training.methods import METHODS
from fedsdr.types import S

# What has an axis of its own, and so is not swept.
_AXES = {"seed": "seeds", "algorithm.name": "algorithms", "method.name": "methods"}


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    group: Group
    config: Config

    @property
    def name(self) -> str:
        """The name of its folder."""
        config, default = self.config, Config()
        # Without where it runs, which changes no number, and without the defaults: a key that a
        # later version adds must not rename every folder.
        names = [key for key in key_names() if not key.startswith("engine.")]
        values = {key: value_of(config, key) for key in names}
        own = {key: value for key, value in values.items() if value != value_of(default, key)}
        digest = sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:10]
        return f"{config.method.name}-{config.algorithm.name}-seed{config.seed}-{digest}"

    def __str__(self) -> str:
        return f"{self.group}, seed {self.config.seed}"


def cells_of(config: Config, study: CompareConfig, folder: Path) -> list[Cell]:
    """Return every cell, paths in variants and sweeps being relative to `folder`.

    The baseline is among them where it is a method's name. Beside each method of several stages, or
    variant of one, stand plain with as many rounds, and plain at equal compute: with as many local
    epochs as its stages have in all. UserError for an unknown name or key, an empty list, and a
    baseline that is not there.
    """
    algorithms = _some(study.algorithms, config.algorithm.name, "algorithms")
    seeds = _some(study.seeds, config.seed, "seeds")
    variants = _variants(config, study)
    if study.baseline not in variants and study.baseline in METHODS:
        variants[study.baseline] = nested("method.name", study.baseline)
    cells = []
    for algorithm, point in itertools.product(algorithms, _points(config, study.sweep, folder)):
        choose(algorithm, ALGORITHMS, "algorithms")
        configs = {}
        for name, table in variants.items():
            own = with_values(config, table, f"variant '{name}'", folder)
            own = replace(own, algorithm=replace(own.algorithm, name=algorithm))
            for key, value in point:
                own = with_values(own, nested(key, value), f"sweep {key}", folder)
            choose(own.method.name, METHODS, f"variant '{name}': method.name")
            configs[name] = _normal(own)
            if not own.data.test_fraction:
                raise UserError(
                    "data.test_fraction: is 0; runs are compared on test rows, so raise it"
                )
        _check_same_rows(configs)
        for name, own in _with_plain(configs).items():
            plan_of(own, ())  # every name and number is checked before the first cell runs
            # A list among the values could not be part of a key.
            shown = tuple((k, ", ".join(v) if isinstance(v, list) else v) for k, v in point)
            group = Group(name, algorithm, shown)
            cells += [Cell(group, replace(own, seed=seed)) for seed in seeds]
    names = dict.fromkeys(cell.group.variant for cell in cells)
    choose(study.baseline, names, "baseline")
    return cells


def _check_same_rows(configs: Mapping[str, Config]) -> None:
    """UserError for a variant that is measured on other rows or tokens than the others are."""
    keys = [key for key in key_names() if key.startswith("data.")]
    keys += ["model.name", "model.revision", "model.template", "evaluation.max_new_tokens"]
    (first, like), *others = configs.items()
    for name, own in others:
        for key in keys:
            if value_of(own, key) != value_of(like, key):
                raise UserError(
                    f"variant '{name}': '{key}' is not that of '{first}', so that their test rows, "
                    f"tokens or answers are not measured alike; use --sweep {key}=..."
                )


def unread_sweeps(cells: Sequence[Cell]) -> list[str]:
    """Return the swept keys whose values make no difference to any cell."""
    return [
        key
        for i, (key, _) in enumerate(cells[0].group.point)
        if len({cell.group.point[i][1] for cell in cells}) > 1
        and len({repr(value_of(cell.config, key)) for cell in cells}) == 1
    ]


def _some(given: Sequence[Any] | None, otherwise: Any, what: str) -> list[Any]:
    """Return the distinct values of a list, or of the configuration's own value without one."""
    if given is not None and not given:
        raise UserError(f"{what}: the list is empty; name at least one or leave it out")
    return list(dict.fromkeys([otherwise] if given is None else given))


def _variants(config: Config, study: CompareConfig) -> dict[str, dict[str, Any]]:
    """Return the keys that each method and each named variant sets."""
    only_variants = study.methods is None and study.variants
    methods = [] if only_variants else _some(study.methods, config.method.name, "methods")
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


def _points(
    config: Config, sweep: Mapping[str, Any], folder: Path
) -> list[tuple[tuple[str, Any], ...]]:
    """Return every combination of the swept values."""
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
    """Return {"a.b": value} of {"a": {"b": value}}."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        below = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{key}.") if below else {f"{prefix}{key}": value}
    return flat


def _normal(config: Config) -> Config:
    """Return `config` with the default of each key that its data, method and algorithm do not use.

    So a sweep over such a key runs a method once, and one rule's hyperparameters do not stand in
    another's way.
    """
    method, algorithm = METHODS[config.method.name], ALGORITHMS[config.algorithm.name]
    read = {"name", *algorithm.hyper, *(["mu"] if algorithm.correction == "fedprox" else [])}
    unread = [k for k in key_names() if k.startswith("algorithm.") and k[10:] not in read]
    if S not in {phase.train for phase in method.all_phases}:
        unread += ["method.s_reset", "method.s_dropout", "train.smooth_epochs"]
    if "mixture" not in {phase.data for phase in method.phases}:
        unread += ["method.mixture"]
    if not config.data.source:
        unread += ["data.partition", "data.alpha", "data.num_clients"]
    elif config.data.partition in ("iid", "category"):
        unread += ["data.alpha"]
    if config.privacy.mode == "none":
        unread += [k for k in key_names() if k.startswith("privacy.")]
    if not method.rewrites:
        unread += [k for k in key_names() if k.startswith("teacher.")]
    for key in unread:
        section, name = key.split(".")
        own = replace(getattr(config, section), **{name: value_of(Config(), key)})
        config = replace(config, **{section: own})
    return config


def _with_plain(configs: Mapping[str, Config]) -> dict[str, Config]:
    """Return `configs` and, beside each of several stages, plain at equal rounds and compute."""
    found = dict(configs)
    for name, config in configs.items():
        phases = METHODS[config.method.name].all_phases
        if len(phases) < 2:
            continue
        settings = settings_of(config)
        epochs = sum(epochs_of(phase, settings) for phase in phases)
        plain = replace(config, method=MethodConfig("plain"))
        equal = replace(plain, train=replace(config.train, local_epochs=epochs))
        for title, beside in (("plain", plain), ("plain at equal compute", equal)):
            beside = _normal(beside)
            if beside not in found.values():
                found[title if title not in found else f"{title} with {name}"] = beside
    return found
