"""What a run measures of its models, beside loss and score."""

import json

import pytest

from fedsdr.evaluation.model_tables import tables_of
from fedsdr.evaluation.results import table_of
from fedsdr.models import nli
from fedsdr.progress import SILENT, Progress
from fedsdr.runs.run import run_experiment


def test_a_run_audits_the_answers_and_measures_the_retention_of_each_model(write_config, tmp_path):
    results = run_experiment(write_config("federation.rounds=1"), tmp_path / "run", SILENT)
    for model in ("base", "global", "client"):
        assert results["mean"][model]["audit"]["unfinished"]["rows"] == 3
    kept = results["retention"]
    assert 20 < kept["prompts"] <= 24  # an answer of special tokens alone is left out
    assert kept["clients"].keys() == results["clients"].keys()
    of_clients = [entry["drift"]["value"] for entry in kept["clients"].values()]
    assert kept["models"]["client"]["drift"]["value"] == pytest.approx(sum(of_clients) / 3)
    assert min(of_clients) > 0
    total = sum(drift for drift, _, _ in kept["rows"]["global"])
    assert kept["models"]["global"]["drift"]["value"] == pytest.approx(total / kept["tokens"])


def test_every_answer_of_an_evaluation_is_shown_with_its_tokens(write_config, tmp_path):
    shown = []
    given = ("federation.rounds=1", "evaluation.every=1", "evaluation.by_round=all")
    config = write_config(*given, f"teacher.cache={tmp_path / 'cache'}")
    progress = Progress(print, lambda step: step and shown.append(step))
    results = run_experiment(config, tmp_path / "run", progress)
    steps = {(step.what, step.within): step for step in shown}  # the last state of each
    first = steps["evaluating, answers", "round 1 of 1"]
    assert (first.done, first.total, first.until) == (9, 9, "until the round ends")  # 3 models
    assert first.tokens == results["cost"]["tokens"]["evaluate"]
    second = steps["evaluating, answers", ""]
    assert (second.done, second.total) == (9, 9)
    assert second.tokens < first.tokens  # the base's answers are kept
    retention = steps["measuring retention, models", ""]
    assert retention.done == retention.total == 4  # global and three clients
    (rewriting,) = (step for (what, _), step in steps.items() if what == "rewriting bank")
    assert rewriting.tokens > 0


def test_a_method_that_sends_nothing_serves_the_base_which_keeps_everything(write_config, tmp_path):
    config = write_config("federation.rounds=1", "method.name=local")
    kept = run_experiment(config, tmp_path / "run", SILENT)["retention"]["models"]
    assert kept["global"]["drift"]["value"] == kept["global"]["rise"]["value"] == 0
    assert kept["client"]["drift"]["value"] > 0


def test_weights_of_branches_by_prompt_are_measured_as_they_are_served(write_config, tmp_path):
    config = write_config("federation.rounds=2", "method.name=feddpa")
    kept = run_experiment(config, tmp_path / "run", SILENT)["retention"]
    assert kept["clients"]["bank"]["drift"] != kept["models"]["global"]["drift"]


def test_retention_can_be_left_out_and_measured_later(write_config, tmp_path, fedsdr):
    config = write_config("federation.rounds=1", "evaluation.retention=false")
    assert "retention" not in run_experiment(config, tmp_path / "run", SILENT)
    code, out, _ = fedsdr("evaluate", tmp_path / "run", "--set", "evaluation.retention=true")
    assert code == 0
    assert "drift, KL from the base ↓" in out
    assert "retention" in json.loads((tmp_path / "run" / "results.json").read_text())


def test_a_client_that_is_left_out_is_measured_and_leaves_nothing_of_itself(write_config, tmp_path):
    config = write_config(
        "federation.rounds=1", "evaluation.transfer=true", 'data.leave_out=["clinic"]'
    )
    results = run_experiment(config, tmp_path / "run", SILENT)
    assert results["clients"].keys() == results["retention"]["clients"].keys() == {"bank", "school"}
    left = results["took_no_part"]["clients"]["clinic"]["models"]
    assert left["client"] == left["global"]
    assert left["global"]["loss"] != left["base"]["loss"]
    assert results["transfer"]["matrix"]["bank"].keys() == {"bank", "clinic", "school"}
    mean = results["mean"]["global"]["loss"]
    assert results["transfer"]["means"]["global"]["loss"] == pytest.approx(mean)
    [record] = map(json.loads, (tmp_path / "run" / "rounds.jsonl").read_text().splitlines())
    assert {client["id"] for client in record["clients"]} == {"bank", "school"}
    assert not list((tmp_path / "run").rglob("*clinic*"))
    assert "clinic (took no part)" in str(table_of(results))


def test_the_rounds_are_those_of_a_run_without_the_rows_of_the_client_left_out(
    write_config, tmp_path
):
    states = []
    for name, key in (("a", 'data.leave_out=["clinic"]'), ("b", 'data.include=["bank","school"]')):
        run_experiment(write_config("federation.rounds=1", key), tmp_path / name, SILENT)
        states.append((tmp_path / name / "global/adapter_model.safetensors").read_bytes())
    assert states[0] == states[1]


def test_transfer_measures_every_own_model_on_the_rows_of_every_client(write_config, tmp_path):
    config = write_config("federation.rounds=1", "evaluation.transfer=true")
    results = run_experiment(config, tmp_path / "run", SILENT)
    matrix, names = results["transfer"]["matrix"], set(results["clients"])
    assert matrix.keys() == {"global", *names}
    for name in names:
        assert matrix[name].keys() == names
        own = results["clients"][name]["models"]["client"]
        assert matrix[name][name]["loss"] == own["loss"]
        assert (
            matrix["global"][name]["score"] == results["clients"][name]["models"]["global"]["score"]
        )
    titles = [title for title, _ in tables_of(results)]
    assert any(title.startswith("Transfer") for title in titles)


def test_an_nli_model_says_how_many_answers_contradict_the_gold(
    write_config, tmp_path, fedsdr, monkeypatch
):
    out = tmp_path / "run"
    run_experiment(write_config("federation.rounds=1", "evaluation.retention=false"), out, SILENT)
    before = json.loads((out / "results.json").read_text())
    asked = []

    def infer(pairs):
        asked.extend(pairs)
        return [
            "contradiction" if "bank" in gold or "loan" in gold else "entailment"
            for gold, _ in pairs
        ]

    monkeypatch.setattr(nli, "load_nli", lambda name, device: infer)
    assert fedsdr("evaluate", out, "--nli", "some-model")[0] == 0
    after = json.loads((out / "results.json").read_text())
    assert len(asked) == 3 * 3
    audits = {n: c["models"]["client"]["audit"] for n, c in after["clients"].items()}
    assert {n: a["contradiction"]["value"] for n, a in audits.items()} == {
        "bank": 1, "clinic": 0, "school": 0,
    }  # fmt: skip
    assert after["mean"]["base"]["score"] == before["mean"]["base"]["score"]
    assert fedsdr("evaluate", out, "--nli", "x", "--suite", "mmlu")[0] == 2
