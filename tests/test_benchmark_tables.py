"""benchmarks/bench.py writes each table between its markers and nothing else."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import bench

    return bench


def test_a_table_replaces_what_stands_between_its_markers_alone(bench):
    text = "a\n<!-- bench: step -->\nold\n<!-- end -->\nb\n<!-- bench: startup -->\n<!-- end -->\n"
    assert bench.with_table(text, "step", "new\n") == text.replace("old", "new")
    with pytest.raises(ValueError, match="bench: rewriting"):
        bench.with_table(text, "rewriting", "new")


def test_the_document_has_the_markers_of_every_part_and_each_script_exists(bench):
    document = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    marked = re.findall(r"<!-- bench: (\w+) -->\n.*?<!-- end -->", document, re.DOTALL)
    assert sorted(marked) == sorted(bench.PARTS)
    assert all((ROOT / "benchmarks" / script).exists() for script, *_ in bench.PARTS.values())
