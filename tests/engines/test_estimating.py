from fedsdr.config import CompareConfig
from fedsdr.engines.cells import cells_of
from fedsdr.engines.comparing import run_cells
from fedsdr.engines.estimating import estimates_of
from fedsdr.engines.progress import SILENT
from fedsdr.evaluation.comparison import training_part


def test_an_estimate_is_near_what_the_runs_took_and_touches_nothing(write_config, tmp_path):
    config = write_config("federation.rounds=3", "federation.clients_per_round=2")
    cells = cells_of(config, CompareConfig(methods=["feddpa", "fedsdr"]), tmp_path)
    out, cache = tmp_path / "out", tmp_path / "cache"
    estimates = estimates_of(cells, out, SILENT)
    assert not out.exists()
    assert not cache.exists()
    assert [one.runs for one in estimates.values()] == [1, 1, 1, 1]

    done, failed = run_cells(cells, out, SILENT)
    assert failed == {}
    for cell in cells:
        cost, one = done[cell.name]["cost"], estimates[cell.group]
        assert one.bytes_up == cost["bytes_up"]
        assert one.bytes_down == cost["bytes_down"]
        # A client of feddpa leaves its first round's S out, and not all begin in the first round.
        wide = 0.4 if cell.config.method.name == "feddpa" else 0.25
        took = training_part(cost["tokens"])
        assert abs(one.train_tokens - took) < wide * took
        assert abs(one.rewrite_tokens - cost["tokens"].get("rewrite", 0)) <= 30
        assert one.seconds > 0
        assert one.memory > 0
    assert {one.runs for one in estimates_of(cells[:2], out, SILENT).values()} == {0}
