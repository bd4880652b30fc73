"""Expected values are worked by hand."""

import pytest
from scipy import stats

from fedsdr.research.compare.comparison_charts import section_of
from fedsdr.research.compare.differences import Group
from fedsdr.research.compare.front import Point, curve_of, front_of, front_tables, lost_at


def measured(losses, drift, unsupported=0.0):
    """Return `evaluation` of a line of rounds.jsonl: losses of base, global and client models."""
    models = dict(zip(("base", "global", "client"), losses, strict=True))
    audit = {"unsupported": {"value": unsupported}}
    return {
        "of": "test",
        "mean": {name: {"loss": loss, "audit": audit} for name, loss in models.items()},
        "retention": {name: {"drift": {"value": drift}} for name in ("global", "client")},
    }


def run_of(losses, drift, unsupported=0.0):
    """Return the results of a run of four rounds."""
    last = measured(losses, drift, unsupported)
    return {"rounds": 4, "mean": last["mean"], "retention": {"models": last["retention"]}}


def test_a_curve_begins_at_the_base_and_ends_with_the_results():
    records = [
        {"round": 1, "evaluation": None},
        {"round": 2, "evaluation": measured((2.0, 1.5, 1.4), 0.1)},
        {"round": 3, "evaluation": measured((2.0, 1.0, 1.0), 0.9) | {"of": "validation"}},
        {"round": 4, "evaluation": measured((2.0, 1.25, 9.0), 0.2)},
    ]
    curve = curve_of(run_of((2.0, 1.25, 1.0), 0.2, 0.5), records, "client")
    assert [(p.round, p.gain, p.lost["drift"]) for p in curve] == [
        (0, 0.0, 0.0),
        (2, pytest.approx(0.6), 0.1),
        (4, 1.0, 0.2),
    ]


def test_where_the_best_round_is_served_it_is_not_called_the_last():
    """The rounds served differ between the draws, so the mean of their points has no number."""
    group = Group("plain", "fedavg")
    runs = {
        (draw, 0): run_of((2.0, 1.5, 1.5), 0.1 * draw) | {"served_round": draw} for draw in (1, 3)
    }
    front = front_of({group: runs}, {group: {sample: [] for sample in runs}}, "plain")
    curve = [(r["round"], r["gain"], r["drift"]) for r in front["curves"][:2]]
    assert curve == [(0, 0.0, 0.0), ("served", 0.5, pytest.approx(0.2))]


def test_what_is_lost_is_read_where_the_curve_first_reaches_a_gain():
    curve = [
        Point(0, 0.0, {"drift": 0.0}),
        Point(1, 0.4, {"drift": 0.1}),
        Point(2, 0.2, {"drift": 0.5}),
        Point(3, 0.6, {"drift": 0.9}),
    ]
    assert lost_at(curve, 0.2, "drift") == pytest.approx(0.05)
    assert lost_at(curve, 0.5, "drift") == pytest.approx(0.8)
    assert lost_at(curve, 0.7, "drift") is None
    assert lost_at(curve, 0.2, "wrong") is None


def test_variants_are_compared_at_the_lower_of_their_highest_gains():
    """Plain reaches a gain of 0.5 at drift 0.2 after round 2, and 1.0 at 0.6 at the end; the other
    reaches 0.75 at the end: plain's drift there is 0.4 in every draw."""
    plain, other = Group("plain", "fedavg"), Group("other", "fedavg")
    draws = range(3)
    groups = {
        plain: {(draw, 0): run_of((2.0, 1.0, 1.0), 0.6) for draw in draws},
        other: {(draw, 0): run_of((2.0, 1.25, 1.25), 0.1 * draw) for draw in draws},
    }
    records = {
        plain: {
            (d, 0): [{"round": 2, "evaluation": measured((2.0, 1.5, 1.5), 0.2)}] for d in draws
        },
        other: {(d, 0): [] for d in draws},
    }
    front = front_of(groups, records, "plain")
    [row] = [r for r in front["equal_gain"] if r["measure"] == "drift" and r["model"] == "global"]
    assert (row["draws"], row["gain"]) == (3, 0.75)
    assert row["difference"] == pytest.approx(-0.3)
    half = stats.t.ppf(0.975, 2) * 0.1 / 3**0.5
    assert (row["low"], row["high"]) == pytest.approx((-0.3 - half, -0.3 + half))
    curve = [
        (r["round"], r["gain"], r["drift"])
        for r in front["curves"]
        if r["variant"] == "plain" and r["model"] == "global"
    ]
    assert curve == [(0, 0.0, 0.0), (2, 0.5, pytest.approx(0.2)), (4, 1.0, pytest.approx(0.6))]
    curves, equal = front_tables(front)
    assert curves[1][0][-2:] == [
        "drift, KL from the base ↓",
        "answers with a number or name from nowhere ↓",
    ]
    assert any("-0.300 [-0.548, -0.052]" in line[-1] for line in equal[1])


def test_draws_in_which_a_variant_never_gains_are_counted_and_take_the_interval_away():
    """The other gains in two of three draws, where it drifts less; in the third it loses."""
    plain, other = Group("plain", "fedavg"), Group("other", "fedavg")
    groups = {
        plain: {(draw, 0): run_of((2.0, 1.5, 1.5), 0.2) for draw in range(3)},
        other: {
            (draw, 0): run_of((2.0, loss, loss), drift)
            for draw, (loss, drift) in enumerate(((1.5, 0.1), (1.5, 0.11), (2.1, 0.9)))
        },
    }
    front = front_of(groups, {g: {s: [] for s in runs} for g, runs in groups.items()}, "plain")
    row = front["equal_gain"][0]
    assert (row["measure"], row["draws"], row["left_out"]) == ("drift", 2, 1)
    assert row["difference"] == pytest.approx(-0.095)
    assert [row[key] for key in ("low", "high", "more_draws")] == [None] * 3
    header, line, *_ = front_tables(front)[1][1]
    assert dict(zip(header, line, strict=True))["left out"] == "1"
    cells = [{"variant": g.variant, "folder": "cells/x", "failed": None} for g in groups]
    comparison = {
        "baseline": "plain",
        "keys": [],
        "rows": [ROW | {"variant": g.variant} for g in groups],
        "cells": cells,
        "front": front,
        "rewriting_seconds": 0.0,
    }
    section = section_of("study", comparison)
    assert (
        "At equal gain, drift, KL from the base, the global model against plain: "
        "no interval, because pairs of runs are left out: other (1)."
    ) in section.findings
    assert any("'left out' counts pairs of runs" in note for note in section.notes)


ROW = {
    "algorithm": "fedavg",
    "model": "global",
    "draws": 3,
    "seeds": 1,
    "clients": 1,
    "test_rows": 2,
    "metric": "rouge_l",
    "difference_draws": 3,
    "difference_seeds": 1,
    "train_tokens": 1,
    "rewrite_tokens": 0,
    "train_seconds": 1,
    "bytes_up": 1,
    "bytes_down": 1,
}
ROW |= {f"{m}{end}": None for m in ("loss", "score") for end in (
    "", "_sd", "_difference", "_difference_sd", "_difference_low", "_difference_high")}  # fmt: skip


def test_runs_that_measured_neither_drift_nor_answers_have_curves_of_gain_alone():
    run = {"rounds": 1, "mean": {m: {"loss": 1.0} for m in ("base", "global", "client")}}
    group = Group("plain", "fedavg")
    front = front_of({group: {(0, 0): run}}, {group: {(0, 0): []}}, "plain")
    assert [row["gain"] for row in front["curves"]] == [0.0, 0.0, 0.0, 0.0]
    [(_, (header, *_))] = front_tables(front)
    assert header[-1] == "gain ↑"
