"""Tables of many runs: means, spread over seeds, paired intervals against a baseline, cost.

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

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedsdr.evaluation.intervals import percentile_interval, resampled_means
from fedsdr.seeds import seed_for

Results = Mapping[str, Any]  # what results.json holds
# client -> id of a test row -> (numerator, denominator); a client's value is the ratio of the sums
Values = dict[str, dict[str, tuple[float, float]]]
MEASURES = ("loss", "score")
MOST_COLUMNS = 12  # clients in one table


@dataclass(frozen=True)
class Group:
    """The runs that differ in their seed alone; `point` is what a sweep set."""

    variant: str
    algorithm: str
    point: tuple[tuple[str, Any], ...] = ()

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
    """Return the 95 % interval of `mean_over_clients`, each client's rows drawn within it; None
    where a client has fewer than two, of which nothing can be drawn.

    Every call draws the same rows for the same clients. Rows of denominator 0 count for nothing.
    """
    ratios = []
    for client, rows in values.items():
        counted = [pair for pair in rows.values() if pair[1]]
        if len(counted) < 2:
            return None
        numerators, denominators = zip(*counted, strict=True)
        seed = seed_for("comparison", client)  # one seed, and so the same rows in both
        ratios.append(
            resampled_means(numerators, seed, resamples)
            / resampled_means(denominators, seed, resamples)
        )
    return percentile_interval(np.mean(ratios, axis=0))


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
            row = {"variant": group.variant, "algorithm": group.algorithm, **dict(group.point)}
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
                row = {"variant": group.variant, "algorithm": group.algorithm, **dict(group.point)}
                row |= {"model": model, "seeds": len(runs), "client": client}
                for measure, found in of.items():
                    own = [{client: v[client]} for v in found if client in v]
                    row |= _spread(measure, [mean_over_clients(v) for v in own])
                rows.append(row)
    return rows


def client_tables_of(
    rows: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> dict[str, list[list[str]]]:
    """Return the rows of `client_rows` as tables of text by title, a column each client; none for
    more clients than a page is wide enough for.

    The base, which every variant starts from, is a row of the global models' tables.
    """
    clients = sorted({row["client"] for row in rows})
    run = ["variant", "algorithm", *keys, "seeds"]
    kinds = {"global": "global models", "client": "the clients' own models"}
    tables = {}
    for measure, (model, title) in itertools.product(MEASURES, kinds.items()):
        lines: dict[tuple[str, ...], dict[str, str]] = {}
        for row in rows:
            if row["model"] == "base" and model == "global":
                line = ("base", "", *(str(row[key]) for key in keys), "")
            elif row["model"] == model:
                line = tuple(str(row[key]) for key in run)
            else:
                continue
            lines.setdefault(line, {})[row["client"]] = f"{row[measure]:.3f}"
        body = [[*line, *(of.get(name, "") for name in clients)] for line, of in lines.items()]
        tables[f"{measure.capitalize()} by client: {title}"] = [[*run, *clients], *body]
    return tables if len(clients) <= MOST_COLUMNS else {}


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
                row = {"variant": group.variant, "algorithm": group.algorithm, **dict(group.point)}
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


def suite_tables_of(
    rows: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> dict[str, list[list[str]]]:
    """Return the rows of `suite_rows` as tables of text by title, one of each kind of model."""
    run = ["suite", "variant", "algorithm", *keys, "seeds"]
    titles = {
        "global": "Public suites: global models",
        "client": "Public suites: the clients' own models",
    }
    return {
        title: [[*run, "shots", "questions", "base", "score", "score - baseline"]]
        + [
            [
                *(str(row[key]) for key in (*run, "shots", "questions")),
                f"{row['base']:.3f}",
                _mean_text(row, "score"),
                _difference_text(row, "score"),
            ]
            for row in sorted(rows, key=lambda row: row["suite"])
            if row["model"] == model
        ]
        for model, title in titles.items()
        if any(row["model"] == model for row in rows)
    }


def tables_of(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> dict[str, list[list[str]]]:
    """Return tables as text by title: one of each kind of model, and one of cost.

    Each begins with its header; `keys` are those of a sweep.
    """
    run = ["variant", "algorithm", *keys, "seeds"]
    measured = ["clients", "test rows", "loss", "loss - baseline", "score", "score - baseline"]
    tables = {
        title: [[*run, *measured, "metric"]]
        + [
            [*(str(row[key]) for key in run), str(row["clients"]), str(row["test_rows"])]
            + [text(row, m) for m in MEASURES for text in (_mean_text, _difference_text)]
            + [row["metric"]]
            for row in rows
            if row["model"] == model
        ]
        for model, title in (("global", "Global models"), ("client", "The clients' own models"))
    }
    costs = ["train tokens", "rewrite tokens", "train seconds", "MB up", "MB down"]
    tables["Cost of a run"] = [[*run, *costs]] + [
        [*(str(row[key]) for key in run), f"{row['train_tokens']:,.0f}"]
        + [f"{row['rewrite_tokens']:,.0f}", f"{row['train_seconds']:,.0f}"]
        + [f"{row[way] / 1e6:,.2f}" for way in ("bytes_up", "bytes_down")]
        for row in rows
        if row["model"] == "global"
    ]
    return tables


def _spread(name: str, means: Sequence[float]) -> dict[str, Any]:
    sd = statistics.stdev(means) if len(means) > 1 else None
    return {name: statistics.fmean(means) if means else None, f"{name}_sd": sd}


def _difference(name: str, own: Sequence[Values], theirs: Mapping[int, Values]) -> dict[str, Any]:
    a, b = list(own), list(theirs.values())
    means = [mean_over_clients(x) - mean_over_clients(y) for x, y in zip(a, b, strict=True)]
    low, high = (a and stratified_interval(mean_difference(a, b))) or (None, None)
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


def _mean_text(row: Mapping[str, Any], measure: str) -> str:
    sd = row[f"{measure}_sd"]
    return f"{row[measure]:.3f}" + ("" if sd is None else f" ({sd:.3f})")


def _difference_text(row: Mapping[str, Any], measure: str) -> str:
    name = f"{measure}_difference"
    if row[name] is None:
        return ""
    sd = "" if row[f"{name}_sd"] is None else f" ({row[f'{name}_sd']:.3f})"
    seeds, low = row["difference_seeds"], row[f"{name}_low"]
    fewer = f", {seeds} seed{'s' * (seeds > 1)}" if seeds < row["seeds"] else ""
    interval = "" if low is None else f" [{low:+.3f}, {row[f'{name}_high']:+.3f}]"
    return f"{row[name]:+.3f}{interval}{sd}{fewer}"
