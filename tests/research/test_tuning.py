from pathlib import Path

import pytest

from fedsdr.config import CompareConfig
from fedsdr.errors import UserError
from fedsdr.research.compare.grid import cells_of
from fedsdr.research.compare.tuning import (
    picked_values,
    tuning_cells,
    tuning_rows,
    tuning_table,
)

STUDY = CompareConfig(
    methods=["plain", "fedsd"], draws=2, tune={"train.lr": [1e-3, 1e-4], "algorithm.mu": [0.1]}
)


def results(loss):
    model = {"loss_sum": loss, "tokens": 1, "score": 0.0}
    row = {"id": "x", "base": model, "global": model, "client": model}
    return {"examples": {"bank": [row]}, "cost": {"tokens": {"train R.raw": 5}, "seconds": {}}}


def test_each_variant_is_tuned_on_the_draw_after_the_last_and_run_with_its_own_best(write_config):
    config = write_config("data.seed=3")
    trials = tuning_cells(config, STUDY, Path())
    cells = {group.variant: list(points.values()) for group, points in trials.items()}
    assert list(cells) == ["plain", "fedsd"]
    assert {cell.config.data.seed for of in cells.values() for cell in of} == {5}
    assert [cell.config.train.lr for cell in cells["plain"]] == [1e-3, 1e-4]
    losses = {"plain": (2.0, 1.0), "fedsd": (1.0, float("nan"))}
    done = {
        cell.name: results(loss)
        for variant, of in cells.items()
        for cell, loss in zip(of, losses[variant], strict=True)
    }
    rows = tuning_rows(trials, done, "global")
    tuned = picked_values(trials, rows)
    assert {g.variant: v["train.lr"] for g, v in tuned.items()} == {"plain": 1e-4, "fedsd": 1e-3}
    found = cells_of(config, STUDY, Path(), tuned=tuned)
    assert [(c.group.variant, c.config.data.seed, c.config.train.lr) for c in found] == [
        ("plain", 3, 1e-4),
        ("fedsd", 3, 1e-3),
        ("plain", 4, 1e-4),
        ("fedsd", 4, 1e-3),
    ]
    _, table = tuning_table(rows, "global")
    assert [line[table[0].index("")] for line in table[1:]] == ["", "picked", "picked", ""]


def test_tuning_does_not_measure_what_it_does_not_read(write_config):
    config = write_config("evaluation.every=1", "evaluation.transfer=true")
    (cell, *_) = next(iter(tuning_cells(config, STUDY, Path()).values())).values()
    own = cell.config.evaluation
    assert (own.every, own.retention, own.transfer) == (0, False, False)
    config = write_config(
        "evaluation.every=1", "evaluation.keep=best", "data.validation_fraction=0.2"
    )
    (cell, *_) = next(iter(tuning_cells(config, STUDY, Path()).values())).values()
    assert cell.config.evaluation.every == 1


def test_a_variant_whose_tuning_is_not_finished_has_no_cell_yet(write_config):
    config = write_config()
    trials = tuning_cells(config, STUDY, Path())
    plain, fedsd = (list(points.values()) for points in trials.values())
    done = {cell.name: results(1.0) for cell in [*plain, fedsd[0]]}
    tuned = picked_values(trials, tuning_rows(trials, done, "global"))
    found = cells_of(config, STUDY, Path(), tuned=tuned)
    assert {cell.group.variant for cell in found} == {"plain"}


@pytest.mark.parametrize(
    ("tune", "problem"),
    [
        ({"train.lrr": [1.0]}, "train.lrr"),
        ({"train.lr": []}, "train.lr.*at least one"),
        ({"train.lr": 1e-3}, "train.lr.*list"),
        ({"seed": [1, 2]}, "seed.*compare.seeds"),
        ({"data.seed": [1, 2]}, "data.seed.*compare.draws"),
        ({"train": {"lr": [1.0], "local_epochs": [1, 2]}}, "local_epochs.*equal compute"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_in_one_line(write_config, tune, problem):
    with pytest.raises(UserError, match=problem):
        tuning_cells(write_config(), CompareConfig(tune=tune), Path())


def test_the_draw_that_is_tuned_on_is_no_point_of_a_sweep(write_config):
    study = CompareConfig(sweep={"data.seed": [3, 4]}, tune={"train.lr": [1.0, 2.0]})
    with pytest.raises(UserError, match=r"sweep data.seed.*compare\.draws"):
        tuning_cells(write_config("data.seed=3"), study, Path())


def test_all_variants_keep_what_the_base_gave_in_the_cache_that_is_named(write_config):
    study = CompareConfig(methods=["plain", "fedsd"])
    found = cells_of(write_config("teacher.cache=/shared/cache"), study, Path())
    assert {cell.config.teacher.cache for cell in found} == {"/shared/cache"}
