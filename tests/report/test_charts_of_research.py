"""Charts of comparisons and diagnoses, from made-up numbers."""

import json

import pytest

from fedsdr.cli.report import page_of
from fedsdr.research.compare.comparison_charts import section_of
from fedsdr.research.compare.differences import Group, comparison_rows, run_rows
from fedsdr.research.diagnose.diagnosis_charts import groups_of


def results(loss, own=0.0):
    losses = {"base": 2.0, "global": loss, "client": loss - own}
    row = {m: {"loss_sum": of, "tokens": 1, "score": 0.5} for m, of in losses.items()}
    return {
        "clients": {"bank": {"num_test": 2, "metric": "rouge_l"}},
        "examples": {"bank": [{"id": "x", **row}, {"id": "y", **row}]},
        "cost": {"tokens": {}, "seconds": {}, "bytes_up": 1, "bytes_down": 1},
    }


@pytest.fixture
def comparison():
    losses = {"plain": (1.0, 1.1, 1.2), "better": (0.5, 0.6, 0.7), "unclear": (0.9, 1.2, 1.35)}
    groups = {
        Group(name, "fedavg"): {
            (draw, 0): results(loss, own=0.1 if name == "better" else 0.0)
            for draw, loss in enumerate(of)
        }
        for name, of in losses.items()
    }
    cells = [{"variant": g.variant, "algorithm": "fedavg", "folder": "cells/x", "failed": None,
              "finished": True} for g in groups]  # fmt: skip
    return {"baseline": "plain", "keys": [], "rows": comparison_rows(groups, "plain"),
            "runs": run_rows(groups), "rewriting_seconds": 0.0, "cells": cells}  # fmt: skip


def test_a_comparison_has_a_dot_a_draw_and_its_variants_are_ordered(comparison):
    chart = section_of("study", comparison).groups[0].charts[0]
    means = {row[0]: row[2] for row in chart.rows if row[1] == "mean"}
    assert list(means) == ["better", "unclear"]
    assert means == pytest.approx({"better": -0.5, "unclear": 0.05})
    runs = [row[2] for row in chart.rows if row[:2] == ("unclear", "one run")]
    assert runs == pytest.approx([-0.1, 0.1, 0.15])


def test_a_comparison_says_what_its_intervals_tell_apart(comparison):
    line = section_of("study", comparison).findings[0]
    assert "lower: better (-0.500 [-0.500, -0.500])" in line
    assert "not clearly different: unclear (+0.050 [" in line


def test_variants_that_serve_one_model_to_all_are_drawn_once(comparison):
    both = [chart.title for chart in section_of("study", comparison).groups[0].charts]
    assert "Loss of the own models" in both
    for row in comparison["rows"]:
        if row["model"] == "client":
            row["loss"] = next(
                r["loss"]
                for r in comparison["rows"]
                if r["model"] == "global" and r["variant"] == row["variant"]
            )
    section = section_of("study", comparison)
    assert not any("own" in chart.title for chart in section.groups[0].charts)
    assert not any("own models" in line for line in section.findings)


def test_a_comparison_says_and_draws_what_differs_at_equal_gain(comparison):
    point = {"algorithm": "fedavg", "model": "global", "unsupported": None, "wrong": None}
    curve = [
        {"variant": "better", "round": n, "gain": gain, "drift": drift} | point
        for n, gain, drift in ((0, 0.0, 0.0), (2, 0.5, 0.1), (4, 0.6, 0.3))
    ]
    found = {"variant": "better", "algorithm": "fedavg", "model": "global", "draws": 3, "gain": 0.5}
    comparison["front"] = {"curves": curve, "equal_gain": [
        {**found, "measure": "drift", "difference": -0.06, "low": -0.08, "high": -0.04},
        {**found, "measure": "wrong", "difference": -0.04, "low": -0.09, "high": 0.01},
    ]}  # fmt: skip
    for row in comparison["front"]["equal_gain"]:
        row["more_draws"] = None
    section = section_of("study", comparison)
    assert (
        "At equal gain, drift, KL from the base, the global model against plain: "
        "lower: better (-0.060 [-0.080, -0.040])."
    ) in section.findings
    assert not any("wrong" in line for line in section.findings)
    (chart,) = (c for c in section.groups[0].charts if c.title.startswith("Gain against"))
    assert [row[2:4] for row in chart.rows] == [(0.0, 0.0), (0.1, 0.5), (0.3, 0.6)]
    assert chart.spec["layer"][0]["mark"]["type"] == "line"


def test_a_comparison_without_its_baseline_is_warned_of(comparison):
    comparison["baseline"] = "gone"
    section = section_of("study", comparison)
    assert any("'gone' has no finished run" in line for line in section.warnings)


def test_a_comparison_of_an_older_version_has_no_dots_of_runs(comparison, tmp_path):
    del comparison["runs"]
    assert len(section_of("study", comparison).groups[0].charts) == 4
    (tmp_path / "compare.json").write_text(json.dumps(comparison))
    assert '"one run"' not in page_of([tmp_path])


def test_a_diagnosis_has_matrices_of_its_clients_raw_and_rewritten():
    def of(value):
        return {"mean": {"value": value, "rows": 2}, "a / b": {"value": value, "rows": 2}}

    found = {
        "clients": {"a": {}, "b": {}},
        "text": {"TF-IDF cosine": {"raw": of(0.25), "rewritten": of(0.5), "change": of(0.25)}},
        "optimization": {
            "gradient cosine": {},
            "loss transfer": {"trained on raw": {
                "mean": 0.5, "percent": 1.0, "rows": 4, "matrix": [[-1.0, 0.5], [0.25, -0.75]]}},
        },
    }  # fmt: skip
    raw, rewritten, transfer = groups_of(found)[0].charts
    assert raw.rows == [("a", "b", 0.25, ""), ("b", "a", 0.25, "")]
    assert rewritten.rows == [("a", "b", 0.5, ""), ("b", "a", 0.5, "")]
    assert transfer.table[1][1] == ["a", "-1", "0.5"]
