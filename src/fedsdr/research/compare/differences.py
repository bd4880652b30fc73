"""Rows of a comparison: means, spread, paired intervals against a baseline, cost.

With several draws of the data, all spread and intervals are over draws (`draws`), each the mean
over its seeds; a value of one draw has neither. With one draw, two sources of variation are
reported apart. Over seeds: the standard deviation. Over test rows: a 95 % percentile bootstrap
interval of the difference to the baseline. Rows are resampled within each client, because the
clients are given and not sampled (strata; Efron and Tibshirani, "An introduction to the bootstrap",
1993, chapter 8). A row is drawn with its values under both models and all seeds: pairing removes
what makes a row hard for every model (Koehn, "Statistical significance tests for machine
translation evaluation", 2004), and rows are crossed with seeds, because all seeds share the test
rows. Seeds are not resampled: a bootstrap of three is too narrow. So the interval holds for these
seeds; whether a difference outlasts another seed is read from its standard deviation over seeds.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fedsdr.evaluation.results import MODELS
from fedsdr.research.compare.draws import more_draws, paired_interval
from fedsdr.research.compare.model_values import (
    MEASURES,
    Results,
    Values,
    measures_of,
    values_of,
)
from fedsdr.seeds import seed_for


@dataclass(frozen=True)
class Group:
    """Runs that differ in draw and seed alone; `point` holds the swept keys and their values."""

    variant: str
    algorithm: str
    point: tuple[tuple[str, Any], ...] = ()

    @property
    def place(self) -> dict[str, Any]:
        """The first columns of a row."""
        return {"variant": self.variant, "algorithm": self.algorithm, **dict(self.point)}

    def __str__(self) -> str:
        return ", ".join([self.variant, self.algorithm, *(f"{k}={v}" for k, v in self.point)])


Sample = tuple[int, int]  # data.seed of the draw, seed
Groups = Mapping[Group, Mapping[Sample, Results]]  # group -> sample -> results of the run


def comparison_rows(groups: Groups, baseline: str) -> list[dict[str, Any]]:
    """Return one row per kind of model and group; the base model has a row per sweep point.

    Measures are loss, score and the public suites, which are the same for all runs. A difference
    is to the same kind of model of the variant `baseline` with the same algorithm, sweep point and
    samples; None if there is none. A spread of one run is None. All rows have the same measures;
    each has its own count of draws and seeds, since a run may lack it. Costs are means over runs;
    rewrite tokens count in full, although rewrites are made once and shared.
    """
    finished = {group: runs for group, runs in groups.items() if runs}
    bases: dict[Group, dict[Sample, Results]] = {}
    for group, runs in finished.items():
        once = bases.setdefault(Group("base", "", group.point), {})
        for (draw, _), run in runs.items():
            once.setdefault((draw, 0), run)
    runs_of_all = [run for runs in finished.values() for run in runs.values()]
    row_of = partial(_row, measures=measures_of(runs_of_all), over_draws=_over_draws(groups))
    rows = [row_of(group, "base", runs, {}) for group, runs in bases.items()]
    for model in ("global", "client"):
        for group, runs in finished.items():
            own = group.variant == baseline
            against = {} if own else finished.get(replace(group, variant=baseline), {})
            rows.append(row_of(group, model, runs, against))
    return rows


def client_rows(groups: Groups) -> list[dict[str, Any]]:
    """Return one row per group, kind of model and client: means and their spread.

    A mean over clients does not show which client moved it.
    """
    rows, over_draws = [], _over_draws(groups)
    for group, runs in groups.items():
        for model in MODELS if runs else ():
            of = {m: {s: values_of(r, model, m) for s, r in runs.items()} for m in MEASURES}
            for client in dict.fromkeys(name for found in of["loss"].values() for name in found):
                row = group.place | {"model": model, **counts(runs), "client": client}
                for measure, found in of.items():
                    own = {s: {client: v[client]} for s, v in found.items() if client in v}
                    row |= _spread(measure, own, over_draws)
                rows.append(row)
    return rows


def run_rows(groups: Groups) -> list[dict[str, Any]]:
    """Return the loss and the score of each run and kind of model, mean over its clients."""
    return [
        group.place
        | {"model": model, "data_seed": draw, "seed": seed}
        | {m: mean_over_clients(values_of(run, model, m)) for m in MEASURES}
        for group, runs in groups.items()
        for (draw, seed), run in runs.items()
        for model in ("global", "client")
    ]


def mean_over_clients(values: Values) -> float:
    """Return the mean of the clients' values; every client counts once."""
    return statistics.fmean(
        math.fsum(n for n, _ in rows.values()) / math.fsum(d for _, d in rows.values())
        for rows in values.values()
    )


def mean_difference(pairs: Sequence[tuple[Values, Values]]) -> Values:
    """Return the mean of a - b for each test row over the pairs (a, b), one for each seed.

    ValueError unless all are of the same rows with the same denominators.
    """
    like, *others = (
        {client: {i: d for i, (_, d) in rows.items()} for client, rows in values.items()}
        for pair in pairs
        for values in pair
    )
    if any(other != like for other in others):
        raise ValueError("the runs were not measured on the same test rows")
    share = 1 / len(pairs)
    return combined(
        [(sign * share, of) for pair in pairs for sign, of in zip((1, -1), pair, strict=True)]
    )


def combined(weighted: Sequence[tuple[float, Values]]) -> Values:
    """Return the weighted sum of values of the same rows with the same denominators."""
    _, like = weighted[0]
    return {
        client: {
            i: (math.fsum(w * of[client][i][0] for w, of in weighted), d)
            for i, (_, d) in rows.items()
        }
        for client, rows in like.items()
    }


def stratified_interval(values: Values, resamples: int = 2000) -> list[float] | None:
    """Return the 95 % interval of `mean_over_clients`, with rows resampled within each client.

    None if a client has fewer than two rows. Rows with denominator 0 are left out. The draws depend
    on the clients' row counts alone, so variants are compared on the same draws.
    """
    counted = [np.array([p for p in rows.values() if p[1]]) for rows in values.values()]
    if any(len(rows) < 2 for rows in counted):
        return None

    def mean(*drawn: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        sums = [rows[of.astype(int)].sum(axis=-2) for rows, of in zip(counted, drawn, strict=True)]
        return np.mean([of[..., 0] / of[..., 1] for of in sums], axis=0)

    found = stats.bootstrap(
        [np.arange(len(rows)) for rows in counted],  # rows are drawn by number
        mean,
        n_resamples=resamples,
        batch=100,  # bounds the memory
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed_for("comparison")),
    ).confidence_interval
    return [float(found.low), float(found.high)]


FORWARD_SHARE = 0.5  # of a training step, in a forward alone: frozen weights have no gradient


def training_part(cost: Mapping[str, float]) -> float:
    """Return the tokens, or the seconds, of training alone, with those read by a forward alone."""
    share = {"train": 1.0, "forward": FORWARD_SHARE}
    return math.fsum(value * share.get(name.split(" ")[0], 0.0) for name, value in cost.items())


COSTS: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "train_tokens": lambda cost: training_part(cost["tokens"]),
    "rewrite_tokens": lambda cost: cost["tokens"].get("rewrite", 0),
    "train_seconds": lambda cost: training_part(cost["seconds"]),
    "bytes_up": lambda cost: cost["bytes_up"],
    "bytes_down": lambda cost: cost["bytes_down"],
}


def shared_test_rows(groups: Groups, *, pooled: bool) -> float | None:
    """Return the share of test rows that two draws have in common, the mean over pairs of draws.

    `pooled`: the clients of each draw are dealt from one pool, so a row may go to another client.
    None with one draw.
    """
    tested: dict[tuple[tuple[str, Any], ...], dict[int, set[tuple[str, str]]]] = {}
    for group, runs in groups.items():
        for (draw, _), run in runs.items():
            tested.setdefault(group.point, {})[draw] = {
                ("" if pooled else client, row["id"])
                for client, rows in run["examples"].items()
                for row in rows
            }
    pairs = [pair for of in tested.values() for pair in itertools.combinations(of.values(), 2)]
    shares = [2 * len(one & two) / (len(one) + len(two)) for one, two in pairs]
    return statistics.fmean(shares) if shares else None


def _over_draws(groups: Groups) -> bool:
    """Return whether any sweep point has several draws."""
    draws: dict[tuple[tuple[str, Any], ...], set[int]] = {}
    for group, runs in groups.items():
        draws.setdefault(group.point, set()).update(draw for draw, _ in runs)
    return any(len(of) > 1 for of in draws.values())


def _row(
    group: Group,
    model: str,
    runs: Mapping[Sample, Results],
    against: Mapping[Sample, Results],
    *,
    measures: Sequence[str],
    over_draws: bool,
) -> dict[str, Any]:
    first = next(iter(runs.values()))
    clients = first["clients"].values()
    metrics = {client["metric"] for client in clients}
    common = sorted(runs.keys() & against.keys())
    row = group.place | {
        "model": model,
        **counts(runs),
        "clients": len(clients),
        "test_rows": sum(client["num_test"] for client in clients),
        "metric": metrics.pop() if len(metrics) == 1 else "mixed",
        **{f"difference_{name}": count for name, count in counts(common).items()},
    }
    for measure in measures:
        own, theirs = (
            {sample: values_of(run, model, measure) for sample, run in of.items()}
            for of in (runs, against)
        )
        row |= _spread(measure, {sample: of for sample, of in own.items() if of}, over_draws)
        pairs = {s: (own[s], theirs[s]) for s in common if own[s] and theirs[s]}
        row |= _difference(f"{measure}_difference", pairs, over_draws)
    costs = [] if model == "base" else [run["cost"] for run in runs.values()]
    return row | {
        name: statistics.fmean(map(of, costs)) if costs else None for name, of in COSTS.items()
    }


def counts(samples: Collection[Sample]) -> dict[str, int]:
    draws, seeds = zip(*samples, strict=True) if samples else ((), ())
    return {"draws": len(set(draws)), "seeds": len(set(seeds))}


def _means(values: Mapping[Sample, Values], over_draws: bool) -> list[float]:
    """Return one value per draw, the mean over its seeds; else one per seed."""
    found: dict[int, list[float]] = {}
    for (draw, seed), of in values.items():
        found.setdefault(draw if over_draws else seed, []).append(mean_over_clients(of))
    return [statistics.fmean(means) for means in found.values()]


def _spread(name: str, values: Mapping[Sample, Values], over_draws: bool) -> dict[str, Any]:
    means = _means(values, over_draws)
    sd = statistics.stdev(means) if len(means) > 1 else None
    found = {name: statistics.fmean(means) if means else None, f"{name}_sd": sd}
    return found | {f"{name}_{what}": count for what, count in counts(values).items()}


def _difference(
    name: str, pairs: Mapping[Sample, tuple[Values, Values]], over_draws: bool
) -> dict[str, Any]:
    differences = {sample: mean_difference([pair]) for sample, pair in pairs.items()}
    interval, more = None, None
    if over_draws:
        means = _means(differences, over_draws)
        interval, more = paired_interval(means), more_draws(means)
    elif pairs:
        interval = stratified_interval(mean_difference(list(pairs.values())))
    low, high = interval or (None, None)
    return _spread(name, differences, over_draws) | {
        f"{name}_low": low,
        f"{name}_high": high,
        f"{name}_more_draws": more,
    }
