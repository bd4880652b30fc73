from dataclasses import replace
from pathlib import Path

import pytest

from fedsdr.config import CompareConfig, Config, DataConfig, MethodConfig, TrainConfig, load_study
from fedsdr.errors import UserError
from fedsdr.research.compare.grid import cells_of, with_given

BASE = Config(data=DataConfig(clients="rows"), train=TrainConfig(local_epochs=3))


def cells(config=BASE, **study):
    return cells_of(config, CompareConfig(**study), Path())


def variants(found):
    return {cell.group.variant: cell.config for cell in found}


def test_there_is_a_cell_for_each_method_algorithm_point_and_seed():
    found = cells(
        replace(BASE, data=DataConfig(source="rows")),
        methods=["plain", "fedsd"],
        algorithms=["fedavg", "fedyogi"],
        seeds=[0, 1, 2],
        sweep={"data": {"alpha": [0.1, 1]}, "lora.rank": [4]},
    )
    assert len(found) == len({cell.name for cell in found}) == 2 * 2 * 3 * 2
    last = found[-1]
    assert last.group.point == (("data.alpha", 1.0), ("lora.rank", 4))
    config = last.config
    assert (config.method.name, config.algorithm.name, config.seed) == ("fedsd", "fedyogi", 2)
    assert (config.data.alpha, config.lora.rank, config.train.local_epochs) == (1.0, 4, 3)
    assert {cell.config.data.seed for cell in found} == {0}
    assert {cell.config.teacher.seed for cell in found} == {0}


def test_beside_two_stages_stand_plain_at_equal_rounds_and_at_equal_compute():
    found = variants(cells(methods=["fedsdr"]))
    assert list(found) == ["fedsdr", "plain", "plain at equal compute"]
    assert found["plain"].train == BASE.train
    assert found["plain"].method == MethodConfig("plain")
    assert found["plain at equal compute"].train.local_epochs == 6
    # One stage needs no such company; what is listed already is not added again.
    assert list(variants(cells(methods=["plain", "fedsd"]))) == ["plain", "fedsd"]
    assert list(variants(cells(methods=["plain", "fedsdr", "dual-raw"]))) == [
        "plain", "fedsdr", "dual-raw", "plain at equal compute",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "key", ["data.max_length", "data.test_fraction", "model.template", "evaluation.max_new_tokens"]
)
def test_a_variant_with_other_test_rows_or_tokens_is_refused_before_anything_runs(key):
    section, name = key.split(".")
    value = {"test_fraction": 0.3, "template": "alpaca"}.get(name, 64)
    with pytest.raises(
        UserError, match=rf"variant 'other': '{key}' differs from that of 'plain'.*--sweep"
    ):
        cells(methods=["plain"], variants=[{"name": "other", section: {name: value}}])


def test_equal_compute_counts_the_epochs_of_every_stage_of_each_variant():
    found = variants(
        cells(
            methods=["fedsdr"],
            variants=[{"name": "long S", "train": {"smooth_epochs": 5}}],
        )
    )
    assert found["plain at equal compute"].train.local_epochs == 6
    assert found["plain at equal compute with long S"].train.local_epochs == 8
    assert "plain with long S" not in found
    # A teacher reads every row once a round: half a pass more, which plain rounds up.
    found = variants(cells(methods=["fedsdr-down"]))
    assert found["plain at equal compute"].train.local_epochs == 10


def test_a_key_that_a_method_does_not_read_makes_no_new_cell():
    found = cells(
        methods=["plain", "fedsdr"],
        sweep={"method.s_dropout": [0.0, 0.5], "teacher.filter": ["none", "sdft"]},
    )
    of = {
        name: {cell.name for cell in found if cell.group.variant == name}
        for name in ("plain", "fedsdr", "plain at equal compute")
    }
    assert [len(names) for names in of.values()] == [1, 4, 1]
    found = cells(
        methods=["plain", "anchored-plain", "masked"],
        sweep={"train.anchor_beta": [2.0, 7.0], "train.mask_perplexity": [2.5, 9.0]},
    )
    counts = [
        len({cell.name for cell in found if cell.group.variant == name})
        for name in ("plain", "anchored-plain", "masked")
    ]
    assert counts == [1, 2, 2]
    found = cells(methods=["fedsdr"], sweep={"teacher.attempts": [1, 2]})
    assert len({cell.name for cell in found if cell.group.variant == "fedsdr"}) == 1
    # What deals the rows of one file, clients with files of their own do not read.
    found = cells(methods=["plain"], sweep={"data.alpha": [0.1, 1.0], "data.num_clients": [2, 4]})
    assert (len(found), len({cell.name for cell in found})) == (4, 1)
    # Nor does the hyperparameter of one rule stand in another's way.
    yogi = replace(BASE, algorithm=replace(BASE.algorithm, b1=0.5))
    found = cells(yogi, methods=["plain"], algorithms=["fedavg", "fedyogi"])
    assert [cell.config.algorithm.b1 for cell in found] == [None, 0.5]


def test_a_baseline_that_is_a_method_need_not_be_listed():
    assert list(variants(cells(methods=["fedsd"]))) == ["fedsd", "plain"]
    assert list(variants(cells(methods=["plain"], baseline="fedsd"))) == ["plain", "fedsd"]


def test_where_a_run_runs_is_no_other_cell():
    there = cells(replace(BASE, engine=replace(BASE.engine, threads=1)))
    assert [cell.name for cell in there] == [cell.name for cell in cells()]


def test_a_folder_that_an_older_version_named_by_absolute_paths_is_found(tmp_path):
    config = Config(
        data=DataConfig(clients="/data/clients", max_length=128),
        method=MethodConfig("plain"),
        train=TrainConfig(lr=1e-3, local_epochs=1),
    )
    [cell] = cells_of(config, CompareConfig(), Path("/data"))
    old = tmp_path / "cells" / "plain-fedavg-seed0-d956634772"  # as version 0.1.0 named it
    assert cell.folder_in(tmp_path) == tmp_path / "cells" / cell.name != old
    old.mkdir(parents=True)
    assert cell.folder_in(tmp_path) == old


def test_a_study_is_fixed_in_a_file(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text("""
        [data]
        clients = "rows"
        [compare]
        methods = ["fedsdr"]
        seeds = [3, 4]
        sweep.lora.target_modules = [["q_proj"], "all-linear"]
        baseline = "S reset, own prompts"
        [[compare.variants]]
        name = "S reset, own prompts"
        method.s_reset = true
        teacher.prompts = "mine.toml"
    """)
    config, study = load_study(path)
    found = cells_of(config, study, tmp_path)
    own = [cell for cell in found if cell.group.variant == study.baseline]
    assert [cell.config.seed for cell in own] == [3, 4, 3, 4]
    assert own[0].config.method == MethodConfig("fedsdr", s_reset=True)
    assert own[0].config.teacher.prompts == str(tmp_path / "mine.toml")
    assert own[0].config.lora.target_modules == ["q_proj"]
    assert own[0].group.point == (("lora.target_modules", "q_proj"),)
    assert len({cell.group for cell in found}) == 4 * 2


@pytest.mark.parametrize(
    ("study", "words"),
    [
        ({"methods": ["plian"]}, "did you mean 'plain'"),
        ({"algorithms": ["fedyogy"]}, "did you mean 'fedyogi'"),
        ({"methods": []}, "methods: the list is empty"),
        ({"algorithms": []}, "algorithms: the list is empty"),
        ({"seeds": []}, "seeds: the list is empty"),
        ({"sweep": {"data.alhpa": [1]}}, "unknown key 'data.alhpa'.*'data.alpha'"),
        ({"sweep": {"data.alpha": []}}, "sweep data.alpha: .*at least one value"),
        ({"sweep": {"data.alpha": 3}}, "sweep data.alpha: .*list"),
        ({"sweep": {"data.alpha": ["x"]}}, "must be a number"),
        ({"sweep": {"seed": [1]}}, "sweep seed: use compare.seeds"),
        ({"baseline": "plian"}, "baseline: unknown name.*did you mean 'plain'"),
        ({"variants": [{"method": {"name": "fedsd"}}]}, "has no name"),
        ({"variants": [{"name": "a"}, {"name": "a"}]}, "two are called 'a'"),
        ({"variants": [{"name": "a", "seed": 1}]}, "variant 'a': 'seed' is set by compare.seeds"),
        ({"variants": [{"name": "a", "method": {"nam": "x"}}]}, "variant 'a': unknown key"),
        ({"variants": [{"name": "a", "method": {"name": "x"}}]}, "variant 'a': .*'x'"),
    ],
)
def test_a_bad_study_is_answered_before_anything_runs(study, words):
    with pytest.raises(UserError, match=words):
        cells(**study)


def test_without_test_rows_there_is_nothing_to_compare():
    with pytest.raises(UserError, match=r"data\.test_fraction"):
        cells(replace(BASE, data=replace(BASE.data, test_fraction=0.0)))
    with pytest.raises(UserError, match=r"data\.test_fraction"):
        cells(sweep={"data.test_fraction": [0.1, 0.0]})


@pytest.mark.parametrize(
    ("named", "run"),
    [
        (None, ["plain", "local", "one epoch", "lr 0.1"]),
        (["fedsd"], ["fedsd", "plain"]),
        (["fedsd", "lr 0.1"], ["fedsd", "lr 0.1", "plain"]),
        (["one epoch"], ["one epoch", "plain"]),
    ],
)
def test_methods_that_are_given_may_be_variants_and_leave_the_others_out(named, run):
    lr, epochs = {"train": {"lr": 0.1}}, {"train": {"local_epochs": 1}}
    study = CompareConfig(
        methods=["plain", "local"],
        variants=[{"name": "one epoch", **epochs}, {"name": "lr 0.1", **lr}],
    )
    asked = with_given(study, methods=named, sweep={})
    base = replace(BASE, method=MethodConfig(name="fedsd"))
    assert list(variants(cells_of(base, asked, Path()))) == run
