import pytest

from fedsdr.config import CompareConfig
from fedsdr.progress import SILENT
from fedsdr.research.compare.compare_runs import run_cells
from fedsdr.research.compare.differences import Group, training_part
from fedsdr.research.compare.dry_run import estimates_of, shared_seconds
from fedsdr.research.compare.grid import Cell, cells_of
from fedsdr.runs.run import run_experiment


def test_an_estimate_is_near_what_the_runs_took_and_touches_nothing(write_config, tmp_path):
    config = write_config("federation.rounds=3", "federation.clients_per_round=2")
    cells = cells_of(config, CompareConfig(methods=["feddpa", "fedsdr"]), tmp_path)
    out, cache = tmp_path / "out", tmp_path / "cache"
    estimates = estimates_of(cells, out, SILENT)
    assert not out.exists()
    assert not cache.exists()
    assert [one.runs for one in estimates.values()] == [1, 1, 1, 1]
    # The base is scored once for all four, the rewrites are made once for each of two filters.
    works = {work for one in estimates.values() for work in one.shared}
    assert len(works) == 3
    most = [max(one.shared.get(work, 0.0) for one in estimates.values()) for work in works]
    assert shared_seconds(estimates) == pytest.approx(sum(most))

    done, failed = run_cells(cells, out, SILENT)
    assert failed == {}
    for cell in cells:
        cost, one = done[cell.name]["cost"], estimates[cell.group]
        assert one.bytes_up == cost["bytes_up"]
        assert one.bytes_down == cost["bytes_down"]
        took = training_part(cost["tokens"])
        assert abs(one.train_tokens - took) < 0.25 * took
        assert abs(one.rewrite_tokens - cost["tokens"].get("rewrite", 0)) <= 30
        assert one.seconds > 0
        assert one.memory > 0
    assert {one.runs for one in estimates_of(cells[:2], out, SILENT).values()} == {0}


@pytest.mark.parametrize(
    "overrides",
    [
        ["method.name=feddpa", "federation.rounds=6"],  # whose first round has one phase
        ["method.name=plain-personal", "federation.clients_per_round=1"],
        ["method.name=plain", "federation.clients_per_round=30"],  # of 3 clients
    ],
)
def test_a_phase_is_counted_as_often_as_it_runs(overrides, write_config, tmp_path):
    group, config = Group("one", "fedavg"), write_config(*overrides)
    one = estimates_of([Cell(group, config)], tmp_path / "out", SILENT)[group]
    cost = run_experiment(config, tmp_path / "run", SILENT)["cost"]
    assert one.train_tokens == pytest.approx(training_part(cost["tokens"]), rel=0.1)
    assert (one.bytes_up, one.bytes_down) == (cost["bytes_up"], cost["bytes_down"])
