import csv
import json
import shutil
from collections import Counter
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from fedsdr.config import CompareConfig
from fedsdr.distill import cache
from fedsdr.errors import BusyError, UserError
from fedsdr.models import memory
from fedsdr.models.memory import choose_pack
from fedsdr.progress import SILENT
from fedsdr.research.compare import compare_runs
from fedsdr.research.compare.compare_runs import (
    comparison_of,
    finished_cells,
    run_cells,
    write_comparison,
)
from fedsdr.research.compare.differences import Group
from fedsdr.research.compare.grid import Cell, cells_of
from fedsdr.runs import run as run_module
from fedsdr.runs import shared_base
from fedsdr.runs.client_runtime import with_pack
from fedsdr.runs.run import run_experiment
from fedsdr.runs.run_folder import load_run_config

STUDY = CompareConfig(methods=["plain", "fedsdr"], seeds=[0, 1])


@pytest.fixture
def cells(write_config, tmp_path):
    """plain, fedsdr and plain at equal compute, with two seeds each."""
    config = write_config("federation.rounds=1", "data.test_fraction=0.3")
    return cells_of(config, STUDY, tmp_path)


def learned(folder):
    return (folder / "global" / "adapter_model.safetensors").read_bytes()


def test_a_comparison_runs_every_cell_once_and_csv_and_json_agree(cells, tmp_path, monkeypatch):
    bases = Counter()
    rewrites = Counter()
    open_runtime, put = shared_base.open_runtime, cache.RewriteCache.put

    def counted(config, folder):
        bases[config.model] += 1
        return open_runtime(config, folder)

    def counted_put(self, key, generation):
        rewrites[key] += 1
        return put(self, key, generation)

    monkeypatch.setattr(shared_base, "open_runtime", counted)
    monkeypatch.setattr(cache.RewriteCache, "put", counted_put)
    out = tmp_path / "out"
    done, failed = run_cells(cells, out, SILENT)
    assert failed == {}
    assert set(done) == {cell.name for cell in cells} == {p.name for p in (out / "cells").iterdir()}
    assert sum(bases.values()) == 1  # one base serves them all
    assert len(rewrites) == 3 * 7  # one for each training row, for both seeds
    assert set(rewrites.values()) == {1}

    # A cell is what `fedsdr run` makes of its configuration, whatever ran before it.
    last = cells[3]
    assert last.config.method.name == "fedsdr"
    alone = run_experiment(last.config, tmp_path / "alone", SILENT)
    assert learned(tmp_path / "alone") == learned(out / "cells" / last.name)
    assert alone["examples"] == done[last.name]["examples"]
    assert learned(out / "cells" / cells[2].name) != learned(out / "cells" / last.name)

    comparison = comparison_of(cells, done, failed, "plain", out)
    write_comparison(comparison, out)
    kept = json.loads((out / "compare.json").read_text())
    with (out / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{k: "" if v is None else str(v) for k, v in r.items()} for r in kept["rows"]] == rows
    by_name = {(row["variant"], row["model"]): row for row in kept["rows"]}
    base = by_name.pop(("base", "base"))
    assert base["loss"] == pytest.approx(done[cells[0].name]["mean"]["base"]["loss"])
    assert len(by_name) == 3 * 2
    assert {row["seeds"] for row in by_name.values()} == {2}
    plain = by_name["plain", "global"]
    assert plain["loss"] == pytest.approx(
        sum(done[cell.name]["mean"]["global"]["loss"] for cell in cells[:2]) / 2
    )
    own = by_name["fedsdr", "client"]
    assert own["loss"] != by_name["fedsdr", "global"]["loss"]
    low, high = own["loss_difference_low"], own["loss_difference_high"]
    assert low < own["loss_difference"] < high
    equal = by_name["plain at equal compute", "global"]
    assert equal["train_tokens"] == 2 * plain["train_tokens"]
    assert by_name["fedsdr", "global"]["rewrite_tokens"] > 0 == plain["rewrite_tokens"]
    text = (out / "compare.md").read_text()
    assert text.split("\n## ")[0].count("plain at equal compute") == 2  # two kinds of model
    entry = done[cells[0].name]["clients"]
    assert {row["client"] for row in kept["by_client"]} == set(entry)
    assert "over test rows" in text


def test_a_stopped_comparison_goes_on_and_runs_no_finished_cell_again(cells, tmp_path, monkeypatch):
    out = tmp_path / "out"
    trained = []
    train_at = run_module.train_at

    def train(runtime, client, task, after_step):
        if len(trained) == 4:  # in the second cell
            trained.append(None)
            raise KeyboardInterrupt
        trained.append(runtime.folder.name)
        return train_at(runtime, client, task, after_step)

    monkeypatch.setattr(run_module, "train_at", train)
    with pytest.raises(KeyboardInterrupt):
        run_cells(cells, out, SILENT)
    first = cells[0].name
    assert trained[:3] == [first] * 3
    before = (out / "cells" / first / "results.json").stat().st_mtime_ns
    done, failed = run_cells(cells, out, SILENT)
    assert (len(done), failed) == (6, {})
    assert first not in trained[4:]
    assert (out / "cells" / first / "results.json").stat().st_mtime_ns == before
    trained.clear()
    again, _ = run_cells(cells, out, SILENT)
    assert trained == []
    assert again == done


def test_a_failing_cell_leaves_the_others_and_says_why(cells, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run = compare_runs.run_experiment

    def failing(config, *args, **kwargs):
        if config.method.name == "fedsdr":
            raise UserError("no\nluck") if config.seed else ZeroDivisionError("ours")
        return run(config, *args, **kwargs)

    monkeypatch.setattr(compare_runs, "run_experiment", failing)
    done, failed = run_cells(cells, out, SILENT)
    assert len(done) == 4
    assert [(f.reason, f.fault) for f in failed.values()] == [
        ("ZeroDivisionError: ours", True),
        ("no luck", False),
    ]
    comparison = comparison_of(cells, done, failed, "plain", out)
    write_comparison(comparison, out)
    variants = {row["variant"] for row in comparison["rows"]}
    assert variants == {"base", "plain", "plain at equal compute"}
    assert [c["failed"] for c in comparison["cells"]][2:4] == ["ZeroDivisionError: ours", "no luck"]
    assert "no luck" in (out / "compare.md").read_text()


def test_cells_of_other_rows_are_not_put_in_one_table(cells, tmp_path, data_folder, write_config):
    rows = tmp_path / "rows"
    rows.mkdir()
    for file in data_folder.iterdir():
        (rows / file.name).write_text(file.read_text())
    config = write_config("federation.rounds=1", "data.test_fraction=0.3", f"data.clients={rows}")
    one, two = cells_of(config, CompareConfig(methods=["plain"], seeds=[0, 1]), tmp_path)
    out = tmp_path / "out"
    first, _ = run_cells([one], out, SILENT)
    (rows / "bank.jsonl").write_text((rows / "school.jsonl").read_text())
    second, _ = run_cells([two], out, SILENT)
    with pytest.raises(UserError, match="the data changed"):
        comparison_of([one, two], first | second, {}, "plain", out)


@pytest.fixture
def one(write_config):
    """A function: a cell of plain or fedsd that is quick to run."""

    def make(*overrides, method="plain"):
        config = write_config(f"method.name={method}", "federation.rounds=1", *overrides)
        return Cell(Group(method, "fedavg"), config)

    return make


def test_a_cell_of_more_rounds_than_are_asked_for_is_not_put_in_the_table(one, tmp_path):
    cell = one()
    run_cells([cell], tmp_path, SILENT)
    longer = replace(cell.config, federation=replace(cell.config.federation, rounds=2))
    run_experiment(longer, tmp_path / "cells" / cell.name, SILENT, resume=True)
    done, failed = run_cells([cell], tmp_path, SILENT)
    assert done == {}
    assert "2 rounds are done" in failed[cell.name].reason


def test_what_was_measured_otherwise_or_is_broken_is_measured_again_and_not_trained(
    one, tmp_path, monkeypatch
):
    cell = one()
    before, _ = run_cells([cell], tmp_path, SILENT)
    monkeypatch.setattr(run_module, "train_at", None)  # nothing is trained
    folder = tmp_path / "cells" / cell.name
    longer = before[cell.name] | {"max_new_tokens": 60}
    for text in (json.dumps(longer), "{", "[]", '{"rounds": 1}'):
        (folder / "results.json").write_text(text)
        assert finished_cells([cell], tmp_path) == {}
        done, failed = run_cells([cell], tmp_path, SILENT)
        assert failed == {}
        assert done[cell.name]["examples"] == before[cell.name]["examples"]
    (folder / "data.json").unlink()
    assert finished_cells([cell], tmp_path) == {}
    done, failed = run_cells([cell], tmp_path, SILENT)
    assert done == {}
    assert "data.json: missing" in failed[cell.name].reason


def test_changed_data_are_noticed_before_anything_is_run(one, tmp_path, data_folder, monkeypatch):
    rows = shutil.copytree(data_folder, tmp_path / "rows")
    cells = [one(f"data.clients={rows}", f"seed={seed}") for seed in (0, 1)]
    run_cells(cells[:1], tmp_path, SILENT)
    (rows / "bank.jsonl").write_text((rows / "school.jsonl").read_text())
    monkeypatch.setattr(compare_runs, "run_experiment", None)
    with pytest.raises(UserError, match="data of client 'bank' have changed"):
        run_cells(cells, tmp_path, SILENT)


def test_cells_of_other_rewrites_are_not_put_in_one_table(one, tmp_path):
    prompts = tmp_path / "prompts.toml"
    cells = [one(f"seed={seed}", f"teacher.prompts={prompts}", method="fedsd") for seed in (0, 1)]
    standard = files("fedsdr.distill").joinpath("prompts.toml").read_text(encoding="utf-8")
    done = {}
    for i, cell in enumerate(cells):
        prompts.write_text(standard.replace("own words", "own words" + " and" * i))
        done |= run_cells([cell], tmp_path, SILENT)[0]
    assert len(done) == 2
    with pytest.raises(UserError, match="the rewrites changed between"):
        comparison_of(cells, done, {}, "fedsd", tmp_path)


def test_where_another_process_works_its_result_is_taken_when_it_is_there(
    one, tmp_path, monkeypatch
):
    cell, run = one(), compare_runs.run_experiment

    def elsewhere(config, folder, progress, **rest):
        run(config, folder, progress, **rest)  # by the other process, in the meantime
        raise BusyError("another process works there")

    monkeypatch.setattr(compare_runs, "run_experiment", elsewhere)
    done, failed = run_cells([cell], tmp_path, SILENT)
    assert (done.keys(), failed) == ({cell.name}, {})


def test_a_suite_that_was_not_asked_alike_is_left_out_and_the_rest_is_shown(one, tmp_path):
    cells = [one(f"seed={seed}") for seed in (0, 1)]
    done, _ = run_cells(cells, tmp_path, SILENT)
    for cell, asked in zip(cells, (4, 2), strict=True):
        entry = {"scores": {"acc": [1.0] * asked}}
        suite = {"ids": ["a"] * asked, "shots": 5, "how": "by likelihood",
                 "num_questions": asked, "models": {"base": entry, "global": entry},
                 "clients": {}}  # fmt: skip
        drop = {
            "ids": ["b"] * 3,
            "num_questions": 3,
            "models": {m: {"scores": {"f1": [0.5, 1.0, 0.0]}} for m in ("base", "global")},
        }
        text = json.dumps({"mmlu": suite, "drop": suite | drop})
        (tmp_path / "cells" / cell.name / "suites.json").write_text(text)
    comparison = comparison_of(cells, done, {}, "plain", tmp_path)
    assert comparison["suite_settings"] == {"drop": "5-shot, 3 questions"}
    write_comparison(comparison, tmp_path)
    text = (tmp_path / "compare.md").read_text()
    assert "left out, because not every run was asked the same questions: mmlu;" in text
    with (tmp_path / "compare.csv").open(newline="") as file:
        assert {row["drop"] for row in csv.DictReader(file)} == {"0.5"}


STUDY_FILE = """
    [model]
    name = "{model}"
    [data]
    clients = "{data}"
    max_length = 128
    [federation]
    rounds = 1
    [train]
    local_epochs = 1
    pack_tokens = 512
    [lora]
    rank = 2
    [teacher]
    engine = "transformers"
    prompts = "prompts.toml"
    max_new_tokens = 6
    [evaluation]
    max_new_tokens = 4
    [compare]
    methods = ["plain", "fedsd"]
"""


@pytest.mark.parametrize("out", ["studies/out", "runs"])
def test_a_study_that_was_moved_with_its_data_and_runs_runs_nothing_anew(
    out, tmp_path, model_folder, data_folder, fedsdr, monkeypatch
):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    here, there = tmp_path / "here", tmp_path / "moved" / "there"
    study, data = here / "studies", "clients" if out == "studies/out" else "../clients"
    study.mkdir(parents=True)
    shutil.copytree(data_folder, study / data)
    prompts = files("fedsdr.distill").joinpath("prompts.toml").read_text(encoding="utf-8")
    (study / "prompts.toml").write_text(prompts)
    (study / "study.toml").write_text(STUDY_FILE.format(model=model_folder, data=data))
    assert fedsdr("compare", study / "study.toml", "--out", here / out)[0] == 0
    there.parent.mkdir()
    here.rename(there)
    monkeypatch.setattr(compare_runs, "run_experiment", None)
    for options in ([], ["--finished"]):
        arguments = ("compare", there / "studies/study.toml", "--out", there / out, *options)
        code, printed, err = fedsdr(*arguments)
        assert code == 0, err
        assert "fedsd" in printed
    for saved in (there / out / "cells").glob("*/config.toml"):
        assert Path(load_run_config(saved).data.clients).is_relative_to(there)


def test_another_base_is_loaded_where_the_last_one_does_not_fit(cells, tmp_path, monkeypatch):
    opened, open_runtime = [], shared_base.open_runtime

    def counted(config, folder):
        opened.append(folder.name)
        return open_runtime(config, folder)

    monkeypatch.setattr(shared_base, "open_runtime", counted)
    open_once = shared_base.one_base()
    config = cells[0].config
    wider = replace(config, lora=replace(config.lora, rank=4))
    # What "auto" came to is no other base: a cell that goes on has it in its configuration.
    goes_on = open_once(config, tmp_path / "0").config
    assert (goes_on.model.dtype, goes_on.model.template) != ("auto", "auto")
    for i, one in enumerate((replace(goes_on, seed=5), replace(config, seed=6)), start=1):
        runtime = open_once(one, tmp_path / str(i))
        assert (runtime.config.seed, runtime.folder.name) == (one.seed, str(i))
    other = replace(config, model=replace(config.model, template="alpaca"))
    assert open_once(other, tmp_path / "other").renderer.name == "alpaca"
    assert open_once(wider, tmp_path / "wider").config.lora.rank == 4
    open_once(config, tmp_path / "again")
    assert opened == ["0", "wider", "again"]


def test_the_pack_size_is_chosen_once_and_beside_a_loaded_base_its_step_alone_must_fit(
    cells, tmp_path, monkeypatch
):
    config = with_pack(cells[0].config, 0)
    step = choose_pack(with_pack(config, 1024))[1].step
    free = iter([10**12, 2 * step + 2, step + step // 2])
    monkeypatch.setattr(memory, "free_memory", lambda device: next(free))
    open_once = shared_base.one_base()

    def packs(**data):
        shape = replace(config, data=replace(config.data, **data))
        return open_once(shape, tmp_path).config.train.pack_tokens

    assert packs() == 1024
    assert packs(seed=5) == 1024  # nothing is asked again
    assert packs(max_length=config.data.max_length - 1) == 1024  # the weights are there already
    assert packs(max_length=config.data.max_length - 2) == 512
    assert open_once(with_pack(config, 700), tmp_path).config.train.pack_tokens == 700


def test_more_clients_at_once_choose_another_pack_size_beside_a_loaded_base(
    cells, tmp_path, monkeypatch
):
    config = with_pack(cells[0].config, 0)
    one = choose_pack(with_pack(config, 1024))[1]
    # 9 clients: 8 more of the branches (R and S), gradients and moments of one client.
    nine = one.step + 8 * (one.adapters + one.optimizer)
    free = iter([10**12, 2 * nine - 2, 2 * nine + 2])
    monkeypatch.setattr(memory, "free_memory", lambda device: next(free))
    open_once = shared_base.one_base()

    def packs(at_once, length=config.data.max_length):
        engine = replace(config.engine, clients_at_once=at_once)
        data = replace(config.data, max_length=length)
        run = replace(config, engine=engine, data=data)
        return open_once(run, tmp_path, 9).config.train.pack_tokens

    assert packs(1) == 1024
    assert packs(9) == packs(0) == packs(32) == 512  # the 9 that the run has
    assert packs(9, config.data.max_length - 1) == 1024
