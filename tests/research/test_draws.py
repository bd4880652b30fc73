import csv
import json
import shutil

import numpy as np
import pytest
from scipy import stats

from fedsdr.config import CompareConfig
from fedsdr.progress import SILENT
from fedsdr.research.compare.compare_runs import run_study, write_comparison
from fedsdr.research.compare.comparison_charts import section_of
from fedsdr.research.compare.comparison_table import notes_of, tables_of
from fedsdr.research.compare.differences import (
    Group,
    client_rows,
    comparison_rows,
    shared_test_rows,
)
from fedsdr.research.compare.draws import more_draws, paired_interval
from fedsdr.research.compare.variance import sampling_variance, variance_parts, variance_rows


def test_the_interval_of_paired_draws_is_that_of_scipys_paired_t_test():
    ours, theirs = np.random.default_rng(1).normal(size=(2, 6))
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert paired_interval(list(ours - theirs)) == pytest.approx([expected.low, expected.high])
    assert paired_interval([0.3]) is None


def test_intervals_over_draws_hold_the_true_difference_at_their_nominal_rate():
    rng = np.random.default_rng(2)
    trials, draws, true = 2000, 5, 0.2
    shared = rng.normal(0, 5, (trials, draws))  # what a draw does to both variants
    one = shared + rng.normal(true, 1, (trials, draws))
    two = shared + rng.normal(0, 1, (trials, draws))
    found = [paired_interval(list(row)) for row in one - two]
    covered = sum(low <= true <= high for low, high in found)
    low, high = stats.binom.interval(0.999, trials, 0.95)
    assert low <= covered <= high


def test_how_many_more_draws_is_where_the_t_interval_leaves_zero():
    # Mean 1, standard deviation 1.1547 over 4 draws: t(7) 2.365 * 1.1547 / sqrt(8) = 0.965 < 1,
    # t(6) 2.447 * 1.1547 / sqrt(7) = 1.068 > 1, by the table of t.
    assert more_draws([0.0, 2.0, 0.0, 2.0]) == 4
    assert more_draws([1.0, 1.1, 0.9, 1.0]) == 0
    assert more_draws([1.0, -1.0]) is None
    assert more_draws([1.0]) is None


def test_the_parts_of_the_variance_are_recovered_from_a_simulation_that_knows_them():
    rng = np.random.default_rng(3)
    variants, draws = 4, 8
    found = []
    for _ in range(800):
        values = rng.normal(0, 0.3, (variants, draws, 3))
        values += rng.normal(0, 1.0, (1, draws, 1)) + rng.normal(0, 0.5, (variants, draws, 1))
        values += np.arange(variants)[:, None, None]  # variants differ, which is no noise
        parts = variance_parts(values)
        found.append([parts.draw, parts.variant_by_draw, parts.seed])
    assert np.mean(found, axis=0) == pytest.approx([1.0, 0.25, 0.09], rel=0.05)


def test_the_noise_of_test_rows_is_taken_out_of_the_parts_of_draw_and_variant():
    """Two variants, 1,000 draws of 5 test rows each. By row, the noise that the variants share has
    variance 2.5 and that of each alone 5: (2.5 + 5) / 5 = 1.5 in the value of a run."""
    rng = np.random.default_rng(5)
    draws, rows = 1000, 5
    losses = rng.normal(0, 1.0, (1, draws, 1)) + rng.normal(0, 0.5, (2, draws, 1))
    losses = losses + rng.normal(0, 2.5**0.5, (1, draws, rows))
    losses += rng.normal(0, 5**0.5, (2, draws, rows))
    groups = {
        group: {(d, 0): run_of_rows(of) for d, of in enumerate(of_group)}
        for group, of_group in zip((PLAIN, OTHER), losses, strict=True)
    }
    found = variance_rows(groups)[0]
    parts = [found[part] for part in ("draw", "variant_by_draw", "rows")]
    assert parts == pytest.approx([1.0, 0.25, 1.5], abs=0.3)  # three standard errors


def test_one_seed_leaves_its_part_with_that_of_variant_and_draw():
    parts = variance_parts(np.array([[[1.0], [2.0]], [[2.0], [5.0]]]))
    # By hand: deviations +-0.5, so 4 * 0.25 / 1 = 1; draws 1.5 and 3.5, 2 * 2 / 1 = 4, (4 - 1) / 2.
    assert (parts.variant_by_draw, parts.draw, parts.seed) == (1.0, 1.5, None)
    with pytest.raises(ValueError, match="two variants and two draws"):
        variance_parts(np.zeros((1, 3, 2)))


def test_the_sampling_variance_of_scores_is_the_squared_standard_error_by_client():
    scores = np.random.default_rng(4).random((2, 30))
    rows = {
        client: {str(i): (float(x), 1.0) for i, x in enumerate(of)}
        for client, of in zip("ab", scores, strict=True)
    }
    expected = (stats.sem(scores[0]) ** 2 + stats.sem(scores[1]) ** 2) / 4
    assert sampling_variance(rows) == pytest.approx(expected)


def run_of_rows(losses):
    """One client whose test rows have these losses, all models alike."""
    examples = []
    for i, loss in enumerate(losses):
        model = {"loss_sum": float(loss), "tokens": 1, "score": 0.5}
        examples.append({"id": str(i), "base": model, "global": model, "client": model})
    cost = {"tokens": {"train R.raw": 1}, "seconds": {}, "bytes_up": 1, "bytes_down": 1}
    clients = {"bank": {"num_test": len(examples), "metric": "rouge_l"}}
    return {"clients": clients, "examples": {"bank": examples}, "cost": cost}


def run(loss):
    return run_of_rows([loss, loss + 0.01, loss, loss + 0.01])


PLAIN, OTHER = Group("plain", "fedavg"), Group("other", "fedavg")
GROUPS = {
    PLAIN: {(7, 0): run(2.0), (7, 1): run(2.2), (8, 0): run(3.0), (8, 1): run(3.0)},
    OTHER: {(7, 0): run(1.5), (7, 1): run(1.5), (8, 0): run(2.7), (8, 1): run(2.9)},
}


def test_with_draws_spread_and_interval_are_over_draws_and_seeds_are_averaged_first():
    rows = comparison_rows(GROUPS, "plain")
    row = next(r for r in rows if (r["variant"], r["model"]) == ("other", "global"))
    assert (row["draws"], row["seeds"], row["difference_draws"]) == (2, 2, 2)
    differences = [-0.6, -0.2]  # (1.5 - 2.0 + 1.5 - 2.2) / 2 and (2.7 - 3.0 + 2.9 - 3.0) / 2
    assert row["loss_difference"] == pytest.approx(-0.4)
    assert row["loss_difference_sd"] == pytest.approx(np.std(differences, ddof=1))
    interval = [row["loss_difference_low"], row["loss_difference_high"]]
    assert interval == pytest.approx(paired_interval(differences))
    assert row["loss_difference_more_draws"] == more_draws(differences)
    [base] = [r for r in rows if r["model"] == "base"]
    assert (base["draws"], base["loss"]) == (2, pytest.approx(2.505))


def test_in_a_study_of_several_draws_a_variant_with_one_has_no_interval_and_no_spread():
    """plain and other share draw 7 alone: two seeds, which are no sample of draws."""
    partial = GROUPS | {OTHER: {(7, 0): run(1.5), (7, 1): run(1.6)}}
    rows = comparison_rows(partial, "plain")
    row = next(r for r in rows if (r["variant"], r["model"]) == ("other", "global"))
    assert row["loss_difference"] == pytest.approx((1.5 - 2.0 + 1.6 - 2.2) / 2)
    ends = ("sd", "low", "high", "more_draws")
    assert [row[f"loss_difference_{end}"] for end in ends] == [None] * 4
    assert row["loss_sd"] is None
    by_client = next(r for r in client_rows(partial) if r["variant"] == "other")
    assert (by_client["loss"], by_client["loss_sd"]) == (pytest.approx(1.555), None)


def test_each_measure_says_of_how_many_draws_it_is():
    """The relation to the gold answer was judged in two of three draws, and in one of the other's;
    the difference of what was judged once has no interval."""
    groups = {
        PLAIN: {(d, 0): judged(run(2.0), d in (7, 8)) for d in (7, 8, 9)},
        OTHER: {(d, 0): judged(run(1.0 + d / 10), d == 8) for d in (7, 8, 9)},
    }
    rows = comparison_rows(groups, "plain")
    plain, other = (r for r in rows if r["model"] == "global")
    assert (plain["loss_draws"], plain["neutral_draws"]) == (3, 2)
    assert (other["neutral_draws"], other["neutral_sd"]) == (1, None)
    assert (other["loss_difference_draws"], other["neutral_difference_draws"]) == (3, 1)
    assert other["loss_difference_low"] is not None
    assert other["neutral_difference_low"] is None
    assert {tuple(row) for row in rows} == {tuple(rows[0])}
    _, (_, (_, *lines)) = tables_of({"rows": rows, "keys": []})
    assert [line[-2:] for line in lines if line[1:3] == ["other", "global"]] == [
        ["1.000, 1 draw", "+0.000, 1 draw"]
    ]


def test_a_measure_of_a_later_variant_alone_is_a_column_and_files_are_replaced_together(tmp_path):
    groups = {PLAIN: {(7, 0): run(2.0)}, OTHER: {(7, 0): judged(run(1.5), True)}}
    comparison = {
        "baseline": "plain",
        "keys": [],
        "rows": comparison_rows(groups, "plain"),
        "by_client": client_rows(groups),
        "rewriting_seconds": 0.0,
        "cells": [],
    }
    write_comparison(comparison, tmp_path)
    with (tmp_path / "compare.csv").open(newline="") as file:
        found = {(row["variant"], row["model"]): row["neutral"] for row in csv.DictReader(file)}
    assert (found["plain", "global"], found["other", "global"]) == ("", "1.0")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 4
    with pytest.raises(TypeError):  # no value of JSON
        write_comparison(comparison | {"baseline": object()}, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def judged(results, is_judged):
    """The results, with "neutral" as every answer's relation to the gold one where judged."""
    if not is_judged:
        return results
    said = {"finished": True, "audit": {"words": 1, "relation": "neutral"}}
    for row in results["examples"]["bank"]:
        row |= {model: row[model] | said for model in ("base", "global", "client")}
    return results | {"mean": {"base": {"audit": {"neutral": {}}}}}


def on_rows(**rows):
    return {"examples": {client: [{"id": i} for i in ids] for client, ids in rows.items()}}


def test_the_share_of_test_rows_that_draws_have_in_common_is_that_counted_by_hand():
    """Draws 7 and 8 have x of four rows in common, 7 and 9 have none, 8 and 9 have v and w."""
    draws = {7: on_rows(a="xy", b="zu"), 8: on_rows(a="xv", b="wt"), 9: on_rows(a="vs", b="wr")}
    groups = {g: {(draw, 0): run for draw, run in draws.items()} for g in (PLAIN, OTHER)}
    assert shared_test_rows(groups, pooled=False) == pytest.approx((1 / 4 + 0 + 2 / 4) / 3)
    # "w" of client a is another row than "w" of b, unless both are dealt from one pool.
    moved = {PLAIN: {(7, 0): on_rows(a="xw", b="z"), (8, 0): on_rows(a="v", b="w")}}
    assert shared_test_rows(moved, pooled=False) == 0
    assert shared_test_rows(moved, pooled=True) == pytest.approx(1 / 2.5)
    assert shared_test_rows({PLAIN: {(7, 0): draws[7], (7, 1): draws[7]}}, pooled=False) is None


def test_the_notes_say_how_many_test_rows_draws_share():
    comparison = {
        "baseline": "plain",
        "keys": [],
        "rows": comparison_rows(GROUPS, "plain"),
        "shared_test_rows": 0.25,
        "rewriting_seconds": 0.0,
        "cells": [],
    }
    assert any("two have 25% of their test rows in common" in n for n in notes_of(comparison))
    none = notes_of(comparison | {"shared_test_rows": 0.0})
    assert not any("in common" in note for note in none)


def test_the_parts_of_the_variance_are_of_the_samples_that_all_variants_have():
    missing = {**GROUPS, OTHER: {k: r for k, r in GROUPS[OTHER].items() if k != (8, 1)}}
    assert variance_rows(missing) == []
    rows = variance_rows(GROUPS)
    assert [(r["model"], r["measure"]) for r in rows] == [
        (model, measure) for model in ("global", "client") for measure in ("loss", "score")
    ]
    assert rows[0]["seed"] == pytest.approx((0.02 + 0.02) / 4)
    table = tables_of({"rows": comparison_rows(GROUPS, "plain"), "keys": [], "variance": rows})
    assert len(table) == 2
    header, first, *_ = table[1][1]
    shares = [first[header.index(part)] for part in ("draw", "variant x draw", "seed", "rows")]
    assert sum(int(share.rstrip("%")) for share in shares) == pytest.approx(100, abs=2)


def examples_of(folder):
    return json.loads((folder / "results.json").read_text())["examples"].items()


def test_a_study_is_tuned_and_run_its_table_repeats_and_a_variant_not_yet_tuned_is_named(
    write_config, tmp_path
):
    config = write_config("federation.rounds=1", "data.test_fraction=0.3", "train.local_epochs=1")
    study = CompareConfig(methods=["plain", "local"], draws=2, tune={"train.lr": [1e-3, 1e-4]})
    out = tmp_path / "out"
    comparison, failed = run_study(config, study, tmp_path, out, SILENT, run=True)
    assert failed == {}
    assert comparison["finished"] == 4
    assert len(list((out / "cells").iterdir())) == 2 * 2 + 2 * 2  # tuning, then two draws
    assert sum(row["picked"] for row in comparison["tuning"]) == 2
    assert {row["draws"] for row in comparison["rows"]} == {2}
    assert {table[0] for table in tables_of(comparison)} >= {
        "Variance of one run's value",
        "Tuning by the loss of the global model, on a draw that the results leave out",
    }
    one, two = (
        {(client, row["id"]) for client, of in examples_of(out / c["folder"]) for row in of}
        for c in comparison["cells"]
        if c["variant"] == "plain"
    )
    assert comparison["shared_test_rows"] == pytest.approx(len(one & two) / len(one))
    again, _ = run_study(config, study, tmp_path, out, SILENT, run=False)
    assert again == comparison
    # One of four runs of tuning is gone: local has no pick, so of its two draws none is counted.
    lost = next(cell for cell in again["tuning_cells"] if cell["variant"] == "tuning local")
    shutil.rmtree(out / lost["folder"])
    partial, _ = run_study(config, study, tmp_path, out, SILENT, run=False)
    assert {cell["variant"] for cell in partial["cells"]} == {"plain"}
    assert partial["untuned"] == ["local, fedavg"]
    section = section_of("study", partial)
    assert section.facts["Runs"] == "5 of 6 finished; without local, fedavg"
    assert "Of 6 runs, 0 failed and 1 are not finished." in section.warnings
    assert "Left out until its tuning is finished: local, fedavg." in section.warnings
    assert f"not finished: {lost['folder']}" in section.notes
    assert "left out until its tuning is finished: local, fedavg." in section.notes
