import numpy as np
import pytest
from scipy.stats import bootstrap

from fedsdr.research.compare.comparison_table import notes_of, table_of
from fedsdr.research.compare.differences import (
    Group,
    client_rows,
    comparison_rows,
    mean_difference,
    mean_over_clients,
    stratified_interval,
)


def values(rng, rows=(30, 50), tokens=True):
    """Two clients of different size; a loss has other tokens in every row, a score has 1."""
    return {
        client: {
            f"row-{i}": (float(rng.normal()), int(rng.integers(1, 40)) if tokens else 1)
            for i in range(count)
        }
        for client, count in zip(("bank", "clinic"), rows, strict=True)
    }


def arrays(of):
    return [np.array(list(rows.values())).T for rows in of.values()]


def test_every_client_counts_once_whatever_its_rows():
    assert mean_over_clients({"a": {"x": (2.0, 4), "y": (4.0, 8)}, "b": {"z": (3.0, 2)}}) == 1.0


def test_the_interval_of_mean_scores_is_that_of_scipy_with_a_sample_for_each_client():
    given = values(np.random.default_rng(1), tokens=False)
    samples = [numerators for numerators, _ in arrays(given)]
    theirs = bootstrap(
        samples,
        lambda a, b, axis: (a.mean(axis=axis) + b.mean(axis=axis)) / 2,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    ours = stratified_interval(given, resamples=20_000)
    assert ours == pytest.approx([theirs.low, theirs.high], abs=0.01)


def test_the_interval_of_a_loss_draws_losses_with_their_tokens_as_scipy_does_for_pairs():
    given = {"bank": values(np.random.default_rng(3))["bank"]}
    numerators, denominators = arrays(given)[0]
    theirs = bootstrap(
        (numerators, denominators),
        lambda n, d, axis: n.sum(axis=axis) / d.sum(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(4),
    ).confidence_interval
    ours = stratified_interval(given, resamples=20_000)
    assert ours == pytest.approx([theirs.low, theirs.high], abs=1e-3)


def test_what_makes_a_row_hard_for_both_does_not_widen_the_interval():
    b = values(np.random.default_rng(5))
    a = {c: {i: (n - 0.5 * d, d) for i, (n, d) in rows.items()} for c, rows in b.items()}
    assert stratified_interval(mean_difference([(a, b)])) == pytest.approx([-0.5, -0.5])


def test_a_row_without_supervised_tokens_counts_for_nothing():
    rows = {"a": {"x": (2.0, 4), "y": (0.0, 0)}}
    assert mean_over_clients(rows) == 0.5
    rows["a"]["z"] = (1.0, 2)
    assert stratified_interval(rows) == [0.5, 0.5]


def test_one_row_of_a_client_has_no_interval():
    rows = {"a": {"x": (2.0, 4), "y": (0.0, 0)}, "b": {"x": (2.0, 4), "y": (2.0, 4)}}
    assert stratified_interval(rows) is None


def test_differences_are_means_over_seeds_and_need_the_same_rows():
    def one(loss):
        return {"a": {"x": (loss, 2)}}

    assert mean_difference([(one(3.0), one(2.0)), (one(5.0), one(2.0))]) == {"a": {"x": (2.0, 2)}}
    for other in ({"a": {"y": (1.0, 2)}}, {"a": {"x": (1.0, 3)}}, {"b": {"x": (1.0, 2)}}):
        with pytest.raises(ValueError, match="same test rows"):
            mean_difference([(one(3.0), other)])


def results(loss, score, own_loss=None, rewrites=0):
    """One client with two test rows, of 1 and 3 tokens, whose losses a token are all `loss`."""

    def row(id_, tokens):
        def model(a_token):
            return {"loss_sum": a_token * tokens, "tokens": tokens, "score": score}

        own = loss if own_loss is None else own_loss
        return {"id": id_, "base": model(9.0), "global": model(loss), "client": model(own)}

    cost = {
        "tokens": {"train R.raw": 10, "train S.rewritten": 5, "evaluate": 99},
        "seconds": {"train R.raw": 1.0, "evaluate": 99.0},
        "bytes_up": 1_000_000,
        "bytes_down": 2_000_000,
    }
    cost["tokens"] |= {"rewrite": rewrites, "rewrite, this run": 0} if rewrites else {}
    return {
        "clients": {"bank": {"num_test": 2, "metric": "rouge_l"}},
        "examples": {"bank": [row("x", 1), row("y", 3)]},
        "cost": cost,
    }


GROUPS = {
    Group("plain", "fedavg"): {(0, 0): results(2.0, 0.5), (0, 1): results(3.0, 0.5)},
    Group("fedsdr", "fedavg"): {
        (0, 0): results(1.5, 0.75, 1.0, rewrites=7),
        (0, 1): results(2.0, 0.75, 1.0, rewrites=9),
        (0, 2): results(0.0, 0.75, 1.0, rewrites=8),
    },
    Group("fedsdr", "fedyogi"): {(0, 0): results(1.0, 1.0)},
    Group("fedsd", "fedavg"): {},
}


def test_the_rows_are_those_worked_by_hand():
    base, *rows = comparison_rows(GROUPS, "plain")
    assert (base["variant"], base["model"], base["loss"], base["score"]) == ("base", "base", 9, 0.5)
    assert (base["loss_difference"], base["train_tokens"]) == (None, None)
    assert [(r["variant"], r["algorithm"], r["model"]) for r in rows] == [
        (variant, algorithm, model)
        for model in ("global", "client")
        for variant, algorithm in (("plain", "fedavg"), ("fedsdr", "fedavg"), ("fedsdr", "fedyogi"))
    ]
    plain, fedsdr, alone, plain_own, own, _ = rows
    assert (plain["loss"], plain["loss_sd"]) == (2.5, pytest.approx(0.5**0.5))
    assert (plain["seeds"], plain["clients"], plain["test_rows"]) == (2, 1, 2)
    assert plain["loss_difference"] is None
    # Over the seeds that both have: (1.5 - 2 + 2 - 3) / 2; a third seed counts in the mean alone.
    assert fedsdr["seeds"] == 3
    assert fedsdr["difference_seeds"] == 2
    assert fedsdr["loss"] == pytest.approx(3.5 / 3)
    assert fedsdr["loss_difference"] == -0.75
    assert fedsdr["loss_difference_sd"] == pytest.approx(0.25 * 2**0.5)
    interval = [fedsdr["loss_difference_low"], fedsdr["loss_difference_high"]]
    assert interval == pytest.approx([-0.75, -0.75])  # every row differs by as much a token
    assert fedsdr["score_difference"] == 0.25
    # A client's model is compared to the baseline's client model.
    assert own["loss"] == 1.0
    assert own["loss_difference"] == pytest.approx(1.0 - plain_own["loss"])
    # Another algorithm has no baseline of its own here.
    assert (alone["loss_sd"], alone["loss_difference"]) == (None, None)
    assert [fedsdr["train_tokens"], fedsdr["rewrite_tokens"], plain["rewrite_tokens"]] == [15, 8, 0]
    assert [fedsdr["train_seconds"], fedsdr["bytes_up"], fedsdr["bytes_down"]] == [1, 1e6, 2e6]


def test_the_table_has_a_row_for_each_variant_and_kind_of_model():
    title, table = table_of({"rows": comparison_rows(GROUPS, "plain"), "keys": []})
    assert title == "Loss, score and cost (draws 1, clients 1, test rows 2, metric rouge_l)"
    header, base, plain, fedsdr, alone, *own = table
    assert header[:4] == ["variant", "algorithm", "seeds", "model"]
    assert base[:6] == ["base", "", "1", "base", "9.000", ""]
    assert plain[:6] == ["plain", "fedavg", "2", "global", "2.500 (0.707)", ""]
    assert fedsdr[4:6] == ["1.167 (1.041)", "-0.750 [-0.750, -0.750] (0.354), 2 seeds"]
    assert alone[4:6] == ["1.000", ""]
    assert own[1][:5] == ["fedsdr", "fedavg", "3", "client", "1.000 (0.000)"]
    cost = ["train tokens", "rewrite tokens", "train seconds", "MB up", "MB down"]
    assert (header[8:], base[8:]) == (cost, [""] * 5)
    assert fedsdr[8:] == ["15", "8", "1", "1.00", "2.00"]


def test_what_is_the_same_in_every_row_stands_in_the_title():
    groups = {group: runs for group, runs in GROUPS.items() if group.algorithm == "fedavg"}
    title, table = table_of({"rows": comparison_rows(groups, "plain"), "keys": []})
    assert "algorithm fedavg" in title
    assert "algorithm" not in table[0]


def test_by_client_each_kind_of_model_has_a_row_with_its_means_over_seeds():
    clinic = {"clinic": [{"id": "z"} | {m: {"loss_sum": 6.0, "tokens": 2, "score": 0.25}
              for m in ("base", "global", "client")}]}  # fmt: skip
    groups = {
        group: {s: r | {"examples": r["examples"] | clinic} for s, r in runs.items()}
        for group, runs in GROUPS.items()
    }
    rows = client_rows(groups)
    assert len(rows) == 3 * 3 * 2
    found = {(r["variant"], r["algorithm"], r["model"], r["client"]): r for r in rows}
    own = found["fedsdr", "fedavg", "global", "bank"]
    assert (own["seeds"], own["loss"], own["score"]) == (3, pytest.approx(3.5 / 3), 0.75)
    assert own["loss_sd"] == pytest.approx(np.std([1.5, 2.0, 0.0], ddof=1))
    assert found["plain", "fedavg", "base", "clinic"]["loss"] == 3.0
    assert found["fedsdr", "fedyogi", "client", "clinic"]["loss_sd"] is None


def asked(scores, clients=(), ids=("q1", "q2", "q3", "q4")):
    """What suites.json holds of one suite; `scores` are those of the global model."""

    def entry(values):
        return {"scores": {"acc": list(values), "exact_match": [0.0] * len(values)}}

    return {
        "mmlu": {
            "shots": 5,
            "num_questions": len(ids),
            "ids": list(ids),
            "models": {"base": entry([1, 0, 0, 0][: len(ids)]), "global": entry(scores)},
            "clients": {f"c{i}": entry(values) for i, values in enumerate(clients)},
        }
    }


def with_suites(suites):
    return results(2.0, 0.5) | {"suites": suites}


def test_suites_are_compared_by_question_over_seeds_and_clients_beside_loss_and_score():
    plain, fedsdr = Group("plain", "fedavg"), Group("fedsdr", "fedavg")
    own = [[1, 1, 1, 0], [0, 1, 1, 0]]
    of_plain = [asked([1, 0, 0, 0]), asked([1, 1, 0, 0])]
    of_fedsdr = [asked([1, 1, 0, 0], own), asked([1, 1, 1, 0], own)]
    groups = {
        plain: {(0, seed): with_suites(suites) for seed, suites in enumerate(of_plain)},
        fedsdr: {(0, seed): with_suites(suites) for seed, suites in enumerate(of_fedsdr)},
    }
    found = comparison_rows(groups, "plain")
    rows = {(row["model"], row["variant"]): row for row in found}
    assert len(rows) == 1 + 2 * 2
    ours = rows["global", "fedsdr"]
    assert (ours["seeds"], ours["difference_seeds"]) == (2, 2)
    assert (rows["base", "base"]["mmlu"], ours["mmlu"]) == (0.25, 0.625)
    assert ours["mmlu_sd"] == pytest.approx(0.125 * 2**0.5)
    assert ours["mmlu_difference"] == 0.25
    differences = {"mmlu": {str(i): (d, 1) for i, d in enumerate([0, 0.5, 0.5, 0])}}
    interval = [ours["mmlu_difference_low"], ours["mmlu_difference_high"]]
    assert interval == stratified_interval(differences)
    assert rows["client", "fedsdr"]["mmlu"] == 0.625  # the mean of two clients, 3/4 and 2/4
    # A run without private branches has one model for all.
    assert rows["client", "plain"]["mmlu"] == rows["global", "plain"]["mmlu"] == 0.375
    assert rows["client", "fedsdr"]["mmlu_difference"] == 0.25
    settings = {"mmlu": "5-shot, 4 questions"}
    _, table = table_of({"rows": found, "keys": [], "suite_settings": settings})
    line = dict(zip(table[0], table[3], strict=True))
    assert line["variant"] == "fedsdr"
    assert line["mmlu ↑"] == "0.625 (0.177)"
    assert line["mmlu - baseline"].startswith("+0.250 [")


def test_suites_that_were_asked_other_questions_are_not_compared():
    plain, fedsdr = Group("plain", "fedavg"), Group("fedsdr", "fedavg")
    other = asked([1, 1], ids=("q1", "q2"))
    groups = {
        plain: {(0, 0): with_suites(asked([1, 0, 0, 0]))},
        fedsdr: {(0, 0): with_suites(other)},
    }
    with pytest.raises(ValueError, match="same test rows"):
        comparison_rows(groups, "plain")


def test_a_comparison_of_an_older_version_is_shown():
    old = {
        "baseline": "plain",
        "keys": [],
        "rows": [row for row in comparison_rows(GROUPS, "plain") if row["model"] != "base"],
        "suites": [{"suite": "mmlu"}],
        "rewriting_seconds": 0.0,
        "paper": {"source": "x"},
        "cells": [{"folder": "cells/x", "failed": None}],
    }
    assert len(table_of(old)[1]) == 1 + 2 * 3
    assert notes_of(old)
