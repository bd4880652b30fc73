"""Rows of many runs: means, spread over seeds, paired intervals against a baseline, cost.

What varies is kept apart. Over seeds: the standard deviation, beside the number of seeds. Over
test rows: a 95 % bootstrap percentile interval of the difference to the baseline, in which each
client's rows are drawn anew within that client, since the clients are given and not a sample
(strata; Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 8). A row is drawn
with its values under both models and all seeds: pairing takes out what makes a row hard for
everyone (Koehn, "Statistical significance tests for machine translation evaluation", 2004), and
rows and seeds are crossed, not nested, because all seeds have the same test rows. Seeds are not
drawn: a bootstrap of three would be too narrow. So the interval holds for these seeds; whether a
difference outlasts another seed is read from its own spread over seeds.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fedsdr.seeds import seed_for

Results = Mapping[str, Any]  # what results.json holds
# client -> id of a test row -> (numerator, denominator); a client's value is the ratio of the sums
Values = dict[str, dict[str, tuple[float, float]]]
MEASURES = ("loss", "score")


@dataclass(frozen=True)
class Group:
    """The runs that differ in their seed alone; `point` is what a sweep set."""

    variant: str
    algorithm: str
    point: tuple[tuple[str, Any], ...] = ()

    @property
    def place(self) -> dict[str, Any]:
        """What a row of a table begins with."""
        return {"variant": self.variant, "algorithm": self.algorithm, **dict(self.point)}

    def __str__(self) -> str:
        return ", ".join([self.variant, self.algorithm, *(f"{k}={v}" for k, v in self.point)])


def values_of(results: Results, model: str, measure: str) -> Values:
    """Return the values of one model's test rows: losses over supervised tokens, scores over 1."""

    def pair(row: Mapping[str, Any]) -> tuple[float, float]:
        return (row["loss_sum"], row["tokens"]) if measure == "loss" else (row["score"], 1)

    return {
        client: {row["id"]: pair(row[model]) for row in rows}
        for client, rows in results["examples"].items()
    }


def mean_over_clients(values: Values) -> float:
    """Return the mean of the clients' values: every client counts once."""
    return statistics.fmean(
        math.fsum(n for n, _ in rows.values()) / math.fsum(d for _, d in rows.values())
        for rows in values.values()
    )


def mean_difference(a: Sequence[Values], b: Sequence[Values]) -> Values:
    """Return for each test row the mean over seeds of a - b, where a[i] and b[i] share a seed.

    ValueError when they are not all of the same rows with the same denominators.
    """
    like = {client: {i: d for i, (_, d) in rows.items()} for client, rows in a[0].items()}
    for values in (*a, *b):
        own = {client: {i: d for i, (_, d) in rows.items()} for client, rows in values.items()}
        if own != like:
            raise ValueError("the runs were not measured on the same test rows")
    pairs = list(zip(a, b, strict=True))
    return {
        client: {
            i: (statistics.fmean(x[client][i][0] - y[client][i][0] for x, y in pairs), d)
            for i, d in rows.items()
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


def comparison_rows(
    groups: Mapping[Group, Mapping[int, Results]], baseline: str
) -> list[dict[str, Any]]:
    """Return one row for each group and kind of model ("global", "client"), as plain values.

    A difference is to the same kind of model of the variant `baseline`, with the same algorithm,
    sweep point and seeds; None where there is none. A spread is None for one seed. Costs are means
    over seeds; tokens of rewrites count in full, though they are made once and shared.
    """
    rows = []
    for model in ("global", "client"):
        for group, runs in groups.items():
            if not runs:
                continue
            against = groups.get(replace(group, variant=baseline), {})
            common = sorted(set(runs) & set(against)) if group.variant != baseline else []
            clients = next(iter(runs.values()))["clients"].values()
            metrics = {client["metric"] for client in clients}
            row = group.place
            row |= {
                "model": model,
                "seeds": len(runs),
                "clients": len(clients),
                "test_rows": sum(client["num_test"] for client in clients),
                "metric": metrics.pop() if len(metrics) == 1 else "mixed",
                "difference_seeds": len(common),
            }
            for measure in MEASURES:
                own = {seed: values_of(run, model, measure) for seed, run in runs.items()}
                row |= _spread(measure, [mean_over_clients(v) for v in own.values()])
                theirs = {seed: values_of(against[seed], model, measure) for seed in common}
                row |= _difference(f"{measure}_difference", [own[s] for s in common], theirs)
            rows.append(row | _cost([run["cost"] for run in runs.values()]))
    return rows


def client_rows(groups: Mapping[Group, Mapping[int, Results]]) -> list[dict[str, Any]]:
    """Return one row for each group, kind of model ("base" too) and client: its means over seeds
    and their deviation. A mean over clients does not say which of them moved it.
    """
    rows = []
    for group, runs in groups.items():
        for model in ("base", "global", "client") if runs else ():
            of = {m: [values_of(run, model, m) for run in runs.values()] for m in MEASURES}
            for client in dict.fromkeys(name for values in of["loss"] for name in values):
                row = group.place
                row |= {"model": model, "seeds": len(runs), "client": client}
                for measure, found in of.items():
                    own = [{client: v[client]} for v in found if client in v]
                    row |= _spread(measure, [mean_over_clients(v) for v in own])
                rows.append(row)
    return rows


def suite_rows(
    groups: Mapping[Group, Mapping[int, Mapping[str, Any]]], baseline: str
) -> list[dict[str, Any]]:
    """Return one row for each group, kind of model and public suite; the runs hold what suites.json
    does. A suite's first metric counts, and for the clients' own models the mean over them.

    The runs were asked the same questions.
    """
    rows = []
    for model in ("global", "client"):
        for group, runs in groups.items():
            against = groups.get(replace(group, variant=baseline), {})
            for suite in dict.fromkeys(name for run in runs.values() for name in run):
                own, theirs = (
                    {
                        seed: values
                        for seed, run in of.items()
                        if suite in run and (values := _suite_values(suite, run[suite], model))
                    }
                    for of in (runs, {} if group.variant == baseline else against)
                )
                if not own:
                    continue
                common = sorted(own.keys() & theirs.keys())
                asked = next(run[suite] for run in runs.values() if suite in run)
                row = group.place
                row |= {
                    "model": model,
                    "suite": suite,
                    "shots": asked["shots"],
                    "questions": asked["num_questions"],
                    "seeds": len(own),
                    "difference_seeds": len(common),
                    "base": mean_over_clients(_suite_values(suite, asked, "base")),
                }
                row |= _spread("score", [mean_over_clients(v) for v in own.values()])
                both = [own[seed] for seed in common], {seed: theirs[seed] for seed in common}
                rows.append(row | _difference("score_difference", *both))
    return rows


def _suite_values(name: str, suite: Mapping[str, Any], model: str) -> Values:
    """Return the scores by question, all of one stratum; {} where there is no such model."""
    kinds = {kind: [entry] for kind, entry in suite["models"].items()}
    # A run without private branches has one model for all: its clients' own is the global one.
    own = list(suite["clients"].values()) or kinds.get("global", [])
    entries = {**kinds, "client": own}.get(model)
    if not entries:
        return {}
    metric = next(iter(entries[0]["scores"]))
    scores = zip(*(entry["scores"][metric] for entry in entries), strict=True)
    return {
        name: {
            f"{i} {question}": (statistics.fmean(of), 1)
            for i, (question, of) in enumerate(zip(suite["ids"], scores, strict=True))
        }
    }


def _spread(name: str, means: Sequence[float]) -> dict[str, Any]:
    sd = statistics.stdev(means) if len(means) > 1 else None
    return {name: statistics.fmean(means) if means else None, f"{name}_sd": sd}


def _difference(name: str, own: Sequence[Values], theirs: Mapping[int, Values]) -> dict[str, Any]:
    a, b = list(own), list(theirs.values())
    means = [mean_over_clients(x) - mean_over_clients(y) for x, y in zip(a, b, strict=True)]
    interval = stratified_interval(mean_difference(a, b)) if a else None
    low, high = interval or (None, None)
    return _spread(name, means) | {f"{name}_low": low, f"{name}_high": high}


def training_part(cost: Mapping[str, float]) -> float:
    """Return the tokens, or the seconds, of training alone."""
    return math.fsum(value for name, value in cost.items() if name.startswith("train "))


def _cost(costs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {
        "train_tokens": statistics.fmean(training_part(c["tokens"]) for c in costs),
        "rewrite_tokens": statistics.fmean(c["tokens"].get("rewrite", 0) for c in costs),
        "train_seconds": statistics.fmean(training_part(c["seconds"]) for c in costs),
        "bytes_up": statistics.fmean(c["bytes_up"] for c in costs),
        "bytes_down": statistics.fmean(c["bytes_down"] for c in costs),
    }
