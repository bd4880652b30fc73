"""What is measured between rounds, and the best round."""

import json
import shutil
from dataclasses import replace

import pytest

from fedsdr.errors import UserError
from fedsdr.federation.checkpoint import load_state
from fedsdr.models.adapters import load_adapter
from fedsdr.progress import SILENT
from fedsdr.report.run_section import run_section
from fedsdr.runs import round_measures, rounds
from fedsdr.runs.export import export_model
from fedsdr.runs.run import run_experiment
from fedsdr.runs.run_folder import finished_results, open_run, read_run

VALIDATION = ("data.validation_fraction=0.3", "evaluation.every=1", "evaluation.retention=false")


def measured(out):
    lines = (out / "rounds.jsonl").read_text().splitlines()
    return {r["round"]: r["evaluation"] for r in map(json.loads, lines) if r["evaluation"]}


def test_test_losses_are_measured_every_other_round_and_after_the_last(write_config, tmp_path):
    config = write_config("evaluation.every=2", "evaluation.retention=false")
    results = run_experiment(config, tmp_path / "run", SILENT)
    found = measured(tmp_path / "run")
    assert list(found) == [2, 3]
    assert (found[3]["of"], found[3]["rows"]) == ("test", 3)
    for name, client in results["clients"].items():
        for kind in ("global", "client"):
            now = found[3]["losses"][name][kind]
            assert now == pytest.approx(client["models"][kind]["loss"], rel=1e-6)
    assert found[3]["mean"]["client"]["loss"] == pytest.approx(results["mean"]["client"]["loss"])
    assert found[2]["mean"] != found[3]["mean"]


def test_measuring_changes_nothing_of_what_is_trained(write_config, tmp_path):
    states = []
    for name, keys in (("a", ()), ("b", ("evaluation.every=1", "evaluation.by_round=all"))):
        run_experiment(write_config(*keys), tmp_path / name, SILENT)
        states.append((tmp_path / name / "global/adapter_model.safetensors").read_bytes())
    assert states[0] == states[1]


def test_everything_can_be_measured_between_rounds(write_config, tmp_path):
    config = write_config("evaluation.every=3", "evaluation.by_round=all")
    results = run_experiment(config, tmp_path / "run", SILENT)
    [found] = measured(tmp_path / "run").values()
    assert found["mean"] == json.loads(json.dumps(results["mean"]))
    assert found["retention"] == json.loads(json.dumps(results["retention"]["models"]))


def with_losses(monkeypatch, by_round):
    """Have every round's own models get a loss of this list."""

    def losses(runtime, clients, state, progress):
        mean = {kind: {"loss": by_round[state.round - 1]} for kind in ("global", "client")}
        return {"mean": mean, "losses": {}}

    monkeypatch.setattr(round_measures, "_losses", losses)


def test_the_round_with_the_lowest_validation_loss_is_served(write_config, tmp_path, monkeypatch):
    with_losses(monkeypatch, [2.0, 1.0, 3.0])
    out = tmp_path / "run"
    config = write_config(*VALIDATION, "evaluation.keep=best")
    results = run_experiment(config, out, SILENT)
    assert measured(out)[1]["of"] == "validation"
    assert (results["rounds"], results["served_round"]) == (3, 2)
    # The state of two rounds is that of a run that ends there.
    with_losses(monkeypatch, [2.0, 1.0])
    two = replace(config, federation=replace(config.federation, rounds=2))
    run_experiment(two, tmp_path / "two", SILENT)
    assert read_run(out)[1].round == 2
    for path in ("global", "clients/bank"):
        mine, theirs = (load_adapter(f / path, "R") for f in (out, tmp_path / "two"))
        assert mine.keys() == theirs.keys()
        assert all((mine[name] == theirs[name]).all() for name in mine)
    runtime, state = open_run(out)
    assert (state.round, state.accepted["bank"]) == (2, 2)
    assert runtime.private_of("bank", state)
    assert load_state(out / "checkpoint").round == 3  # what --resume goes on from
    assert finished_results(config, out) == json.loads(json.dumps(results))
    export_model(out, tmp_path / "export", client_id="bank")
    assert [p.name for p in (out / "best/clients/bank").iterdir()] == ["round-0002"]
    for path in (out / "best/clients/bank", out / "best/clients/bank/round-0002"):
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(("losses", "best"), [([1.0, 2.0, 3.0], 1), ([2.0, 1.0, 3.0], 2)])
def test_a_run_killed_after_measuring_a_round_is_resumed_to_the_same_bytes(
    losses, best, write_config, tmp_path, monkeypatch
):
    with_losses(monkeypatch, losses)
    config = write_config(*VALIDATION, "evaluation.keep=best")
    whole = run_experiment(config, tmp_path / "whole", SILENT)
    real = rounds.save_round

    def killed(folder, state, record, progress):
        if state.round == 2:
            raise KeyboardInterrupt
        real(folder, state, record, progress)

    monkeypatch.setattr(rounds, "save_round", killed)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(config, tmp_path / "run", SILENT)
    assert read_run(tmp_path / "run")[1].round == best  # it can be evaluated as it is
    monkeypatch.setattr(rounds, "save_round", real)
    again = run_experiment(config, tmp_path / "run", SILENT, resume=True)
    assert again["mean"] == whole["mean"]
    assert again["served_round"] == whole["served_round"] == best


@pytest.mark.parametrize("lost", ["best", "best/checkpoint", "best/clients/bank"])
def test_a_lost_best_round_is_never_served_as_the_last(lost, write_config, tmp_path, monkeypatch):
    with_losses(monkeypatch, [2.0, 1.0, 3.0, 4.0, 5.0])
    config = write_config(*VALIDATION, "evaluation.keep=best")
    out = tmp_path / "run"
    run_experiment(config, out, SILENT)
    more = replace(config, federation=replace(config.federation, rounds=5))
    run_experiment(more, out, SILENT, resume=True)  # the S of round 2 is in best/ alone
    shutil.rmtree(out / lost)
    with pytest.raises(UserError, match=r"best: does not hold|bank/round-0002: missing"):
        export_model(out, tmp_path / "export", client_id="bank")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["evaluation.keep=best"], "evaluation.keep: 'best' is chosen on validation rows"),
        (["evaluation.keep=best", "evaluation.every=1"], "set .* data.validation_fraction"),
        (
            [*VALIDATION, "evaluation.keep=best", "method.name=plain-personal"],
            "evaluation.keep: 'plain-personal' trains after the last round",
        ),
        (["evaluation.every=1", "engine.name=flower"], "evaluation.every: a Flower server holds"),
        (
            ["evaluation.keep=best", *VALIDATION, "data.test_fraction=0.9"],  # leaves one row
            "evaluation.keep: .* no client has enough rows",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_runs(
    keys, words, write_config, tmp_path
):
    with pytest.raises(UserError, match=words):
        run_experiment(write_config(*keys), tmp_path / "run", SILENT)
    assert not (tmp_path / "run").exists()


def test_the_report_shows_the_losses_between_rounds(write_config, tmp_path):
    out = tmp_path / "run"
    run_experiment(write_config("evaluation.every=1", "evaluation.retention=false"), out, SILENT)
    section = run_section(out)
    titles = [chart.title for group in section.groups for chart in group.charts]
    for panel in ("Training loss, phase R.raw", "Loss on test rows, own model"):
        assert panel in titles
