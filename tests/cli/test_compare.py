import csv
import json
from pathlib import Path

import pytest
import torch

from fedsdr.config import save_config
from fedsdr.errors import UserError
from fedsdr.federation.checkpoint import save_state
from fedsdr.research.compare import compare_runs
from fedsdr.types import ServerState


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text('[data]\nclients = "clients"\n[compare]\nseeds = [0, 1]\n')
    return path


def results(config):
    def model(loss):
        return {"loss_sum": loss, "tokens": 2, "score": 0.5, "new_tokens": 1, "finished": True}

    loss = 1.0 + config.seed + (config.algorithm.name == "fedyogi")
    models = ("base", "global", "client")
    mean = {"loss": loss, "score": 0.5, "score_ci": [0.0, 1.0]}
    own = dict.fromkeys(models, mean | {"tokens": 2})
    return {
        "method": config.method.name,
        "algorithm": config.algorithm.name,
        "seed": config.seed,
        "mean": dict.fromkeys(models, mean),
        "weighted_mean": dict.fromkeys(models, mean),
        "rounds": config.federation.rounds,
        "max_new_tokens": config.evaluation.max_new_tokens,
        "clients": {"bank": {"num_test": 1, "metric": "rouge_l", "models": own}},
        "examples": {"bank": [{"id": "x", **dict.fromkeys(models, model(loss))}]},
        "cost": {"tokens": {"train R.raw": 3}, "seconds": {}, "bytes_up": 1, "bytes_down": 1},
    }


@pytest.fixture
def ran(monkeypatch):
    """The configurations that were run, by a stand-in that trains nothing."""
    configs = []

    def run(config, out: Path, progress, *, resume, open_runtime):
        configs.append(config)
        if config.train.lr > 1:
            raise UserError("diverged; lower train.lr")
        if config.lora.rank > 100:
            raise ZeroDivisionError("ours")
        out.mkdir(parents=True)
        (out / "data.json").write_text("{}")
        (out / "rounds.jsonl").write_text("")
        return results(config)

    monkeypatch.setattr(compare_runs, "run_experiment", run)
    return configs


def test_the_table_is_printed_and_written(fedsdr, study, ran, tmp_path):
    out = tmp_path / "out"
    code, printed, err = fedsdr(
        "compare", study, "--methods", "plain", "--algorithms", "fedavg,fedyogi",
        "--sweep", "lora.target_modules=q_proj,all-linear", "--sweep", "data.max_length=64,128",
        "--set", "federation.rounds=1", "--out", out,
    )  # fmt: skip
    assert (code, len(ran)) == (0, 2 * 2 * 2 * 2)
    assert "cell 16 of 16: plain, fedyogi" in err
    assert {config.data.max_length for config in ran} == {64, 128}
    assert "lora.target_modules" in printed
    rows = json.loads((out / "compare.json").read_text())["rows"]
    rows, bases = (
        [r for r in rows if r["model"] != "base"],
        [r for r in rows if r["model"] == "base"],
    )
    assert len(bases) == 2 * 2  # one per sweep point
    assert len(rows) == 2 * 2 * 2 * 2  # two kinds of model
    assert {(row["algorithm"], row["loss"]) for row in rows} == {
        ("fedavg", 0.75),
        ("fedyogi", 1.25),
    }
    with (out / "compare.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows) + len(bases)
    assert (out / "compare.md").read_text().startswith("## Loss, score and cost")


def test_json_is_all_that_is_printed(fedsdr, study, ran, tmp_path):
    out = tmp_path / "out"
    code, printed, _ = fedsdr("compare", study, "--methods", "plain", "--out", out, "--json")
    assert code == 0
    assert json.loads(printed) == json.loads((out / "compare.json").read_text())


def test_a_failed_cell_ends_with_2_and_its_reason_after_the_table(fedsdr, study, ran, tmp_path):
    out = tmp_path / "out"
    arguments = ["compare", study, "--methods", "plain", "--out", out]
    code, printed, err = fedsdr(*arguments, "--sweep", "train.lr=0.1,2")
    assert code == 2
    assert err.strip().splitlines()[-1] == "fedsdr: 2 of 4 runs failed: diverged; lower train.lr"
    assert "Loss, score and cost" in printed
    assert "diverged" in (out / "compare.md").read_text()
    # A bug is not for the user to fix.
    code, _, err = fedsdr(*arguments, "--sweep", "lora.rank=4,200")
    assert code == 1
    assert "2 of 4 runs failed: ZeroDivisionError: ours" in err
    # Where nothing was run there is no table.
    code, printed, _ = fedsdr(*arguments, "--set", "train.lr=2", "--out", tmp_path / "none")
    assert (code, printed) == (2, "")
    assert not (tmp_path / "none" / "compare.md").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "plain,fedsrd"], "did you mean 'fedsd"),
        (["--algorithms", "fedavgg"], "did you mean 'fedavg"),
        (["--methods", ","], "methods: the list is empty"),
        (["--seeds", "0,x"], "--seeds 0,x: takes whole numbers"),
        (["--seeds", ""], "seeds: the list is empty"),
        (["--sweep", "data.alpah=1"], "--sweep data.alpah=1: unknown key"),
        (["--sweep", "data.alpha"], "sweep data.alpha: takes a list"),
        (["--sweep", "data=1"], "'data' is a section"),
        (["--baseline", "nobody", "--methods", "plain"], "baseline: unknown name 'nobody'"),
        (["--set", "compare.seeds=[1]"], "unknown key 'compare'"),
    ],
)
def test_a_bad_study_is_answered_in_one_line(arguments, words, fedsdr, study, ran, tmp_path):
    code, out, err = fedsdr("compare", study, "--out", tmp_path / "out", *arguments)
    assert (code, out, ran) == (2, "", [])
    assert len(err.strip().splitlines()) == 1
    assert words in err
    assert not (tmp_path / "out").exists()


def test_a_table_of_what_is_finished_runs_nothing(fedsdr, study, ran, tmp_path):
    out = tmp_path / "out"
    arguments = ("compare", study, "--methods", "plain", "--out", out)
    code, _, error = fedsdr(*arguments, "--finished")
    assert code == 2
    assert "no run of this study is finished" in error
    assert fedsdr(*arguments, "--seeds", "0", "--set", "federation.rounds=1")[0] == 0
    for folder in (out / "cells").iterdir():  # as a run leaves them
        config = next(c for c in ran if f"seed{c.seed}" in folder.name)
        save_config(config, folder / "config.toml")
        (folder / "results.json").write_text(json.dumps(results(config)))
        (folder / "data.json").write_text("{}")
        save_state(folder / "checkpoint", ServerState(1, {"x": torch.zeros(1)}, {}, {}, {}))
    before = len(ran)
    code, _, error = fedsdr(*arguments, "--set", "federation.rounds=1", "--finished")
    assert error == ""
    assert (code, len(ran)) == (0, before)
    assert "not finished: cells/plain-fedavg-seed1" in (out / "compare.md").read_text()
    assert "not finished: cells/plain-fedavg-seed0" not in (out / "compare.md").read_text()
