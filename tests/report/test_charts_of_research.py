"""Charts of comparisons and diagnoses, from made-up numbers."""

import json

import pytest

from fedsdr.cli.report import page_of
from fedsdr.research.compare.comparison_charts import section_of
from fedsdr.research.compare.differences import Group, comparison_rows, run_rows
from fedsdr.research.diagnose.diagnosis_charts import groups_of


def results(loss):
    models = ("base", "global", "client")
    row = {m: {"loss_sum": 2.0 if m == "base" else loss, "tokens": 1, "score": 0.5} for m in models}
    return {
        "clients": {"bank": {"num_test": 2, "metric": "rouge_l"}},
        "examples": {"bank": [{"id": "x", **row}, {"id": "y", **row}]},
        "cost": {"tokens": {}, "seconds": {}, "bytes_up": 1, "bytes_down": 1},
    }


@pytest.fixture
def comparison():
    losses = {"plain": (1.0, 1.1, 1.2), "better": (0.5, 0.6, 0.7), "unclear": (0.9, 1.2, 1.35)}
    groups = {
        Group(name, "fedavg"): {(draw, 0): results(loss) for draw, loss in enumerate(of)}
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
