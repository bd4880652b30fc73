"""fedsdr watch: what it shows of a folder while others write it, and when it ends."""

import json
import os
from dataclasses import replace

import pytest

from fedsdr.cli.watch import sparkline, view_of
from fedsdr.progress import SILENT
from fedsdr.research.compare.compare_runs import run_study
from fedsdr.runs.run import run_experiment
from fedsdr.runs.run_status import STATUS


def test_a_run_is_followed_while_it_runs_and_until_its_end(write_config, tmp_path, fedsdr):
    out, views = tmp_path / "run", {}

    def log(line):
        if line.startswith("round "):
            views[line.split(":")[0]] = view_of(out)

    config = write_config("method.name=plain", "federation.rounds=2", "evaluation.every=1")
    run_experiment(config, out, replace(SILENT, log=log))
    lines, running = views["round 1"]
    assert running
    assert lines[0] == f"{out}: plain with fedavg, 1 of 2 rounds, running"
    assert lines[1].startswith("now: round 1 of 2, losses of models ")
    records = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    first, last = (r["evaluation"]["mean"]["global"]["loss"] for r in records)

    assert not (out / STATUS).exists()
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    code, printed, _ = fedsdr("watch", out)  # ends, since nothing runs
    assert code == 0
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    words = [line.split() for line in printed.splitlines()]
    bars = "█▁" if first > last else "▁█"
    assert [
        "loss",
        "test",
        "rows,",
        "global",
        "model",
        bars,
        f"{first:.3f}",
        "->",
        f"{last:.3f}",
    ] in words
    assert {"bank", "clinic", "school"} <= {line[0] for line in words}
    assert printed.splitlines()[-1] == f"next: fedsdr report {out} (the page of the run)"

    # Stopped in the middle of a line, by a process that is gone; with an update refused.
    (out / "results.json").unlink()
    refused = json.dumps(records[0] | {"refused": [{"id": "bank", "reason": "norm 9"}]})
    (out / "rounds.jsonl").write_text(refused + "\n" + refused[:40])
    status = {"pid": 2**22 + 1, "host": os.uname().nodename, "step": None}
    (out / STATUS).write_text(json.dumps(status))
    _, printed, _ = fedsdr("watch", out, "--once")
    assert "1 of 2 rounds, stopped" in printed
    assert "refused in round 1: bank: norm 9" in printed
    assert f"next: fedsdr run {out}/config.toml --out {out} --resume (go on)" in printed


def test_a_comparison_is_followed_by_its_runs(write_config, tmp_path):
    from fedsdr.config import CompareConfig

    out, views = tmp_path / "out", []

    def log(line):
        if line.startswith("round "):
            views.append(view_of(out))

    config = write_config("method.name=plain", "federation.rounds=1", "evaluation.retention=false")
    study = CompareConfig(methods=["plain"], seeds=[0, 1])
    run_study(config, study, tmp_path, out, replace(SILENT, log=log), run=True)
    lines, running = views[1]
    assert running
    assert lines[0] == f"{out}: 1 of 2 started runs finished, running"
    assert lines[1].startswith("now: cell 2/2, round 1 of 1, rows ")
    finished, running = view_of(out)
    assert (finished[0], running) == (f"{out}: 2 of 2 started runs finished, not running", False)


def test_a_folder_without_a_run_is_one_line(fedsdr, tmp_path):
    code, _, err = fedsdr("watch", tmp_path)
    assert (code, len(err.splitlines())) == (2, 1)


@pytest.mark.parametrize(
    ("values", "bars"),
    [([1.0, 0.5, 0.0], "█▅▁"), ([2.0, 2.0], "▁▁"), ([float(i) for i in range(8)], "▁▂▃▄▅▆▇█")],
)
def test_a_curve_has_a_bar_a_round_between_its_ends(values, bars):
    assert sparkline(list(enumerate(values))) == bars


def test_a_long_curve_keeps_its_first_and_last_value():
    bars = sparkline([(i, float(-i)) for i in range(1000)], most=10)
    assert (len(bars), bars[0], bars[-1]) == (10, "█", "▁")
