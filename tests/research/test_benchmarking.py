"""Public suites on a small run: against the harness's own model, and what the command leaves."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from tiny_suites import write_suites

from fedsdr.progress import SILENT
from fedsdr.research.suites.catalogue import SUITES
from fedsdr.research.suites.harness import FunctionsLM, samples, task_of
from fedsdr.research.suites.questions import Question
from fedsdr.research.suites.run_suites import model_functions
from fedsdr.runs.export import export_model
from fedsdr.runs.run import run_experiment
from fedsdr.runs.run_folder import open_run

ALL = ",".join(SUITES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_suites(tmp_path_factory.mktemp("suites"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Where the one run of these tests is kept."""
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def run(trained, write_config, tmp_path):
    """A copy of it."""
    if not trained.exists():
        config = write_config("federation.rounds=1", "train.local_epochs=1", "data.max_examples=4")
        run_experiment(config, trained, SILENT)
    return shutil.copytree(trained, tmp_path / "run")


@pytest.mark.parametrize("name", ["mmlu", "bbh", "truthfulqa"])
def test_branches_answer_as_the_harness_own_model_of_the_merged_export(name, run, folder, tmp_path):
    suite = SUITES[name]
    questions = suite.read(folder)
    site, state = open_run(run)
    export_model(run, tmp_path / "merged", merge=True)
    theirs = HFLM(pretrained=str(tmp_path / "merged"), device="cpu", dtype=torch.float32)
    site.model.set(state.shared)
    model = model_functions(site)
    task, _ = task_of(name, suite, questions, model)
    expected = samples(theirs, [task])
    with site.model.using("R"):
        made = samples(FunctionsLM(model), [task])
    base = samples(FunctionsLM(model), [task])
    assert len(made) == len(questions)
    for ours, other in zip(made, expected, strict=True):
        scores = [[row[m] for m in suite.metrics] for row in (ours, other)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)
        said, wanted = ours["filtered_resps"], other["filtered_resps"]
        if suite.score:
            assert said == wanted
        else:
            assert [x for x, _ in said] == pytest.approx([x for x, _ in wanted], abs=1e-4)
            assert [greedy for _, greedy in said] == [greedy for _, greedy in wanted]
    assert [row["filtered_resps"] for row in base] != [row["filtered_resps"] for row in made]


def test_every_suite_goes_into_one_file_and_two_tables(fedsdr, run, folder, monkeypatch):
    for name, suite in SUITES.items():  # a model of random weights never stops by itself
        short = replace(suite, max_new_tokens=min(suite.max_new_tokens, 4))
        monkeypatch.setitem(SUITES, name, short)
    arguments = ("--suite-data", folder, "--limit", "2", "--allow-code-execution")
    code, out, err = fedsdr("evaluate", run, "--suite", ALL, *arguments)
    assert code == 0, err
    saved = json.loads((run / "suites.json").read_text())
    assert saved.keys() == SUITES.keys()
    for name, suite in saved.items():
        assert suite["shots"] == SUITES[name].shots
        assert suite["num_questions"] == len(suite["ids"]) == 2
        assert suite["models"].keys() == {"base", "global"}
        assert suite["clients"].keys() == {"bank", "clinic", "school"}
        for entry in (*suite["models"].values(), *suite["clients"].values()):
            assert entry["metrics"].keys() == set(SUITES[name].metrics)
            assert entry["seconds"] > 0
            for metric, scores in entry["scores"].items():
                assert len(scores) == suite["num_questions"]
                mean = sum(scores) / len(scores)
                assert entry["metrics"][metric]["mean"] == pytest.approx(mean)
                spread = sum((s - mean) ** 2 for s in scores) / (len(scores) - 1)
                error = (spread / len(scores)) ** 0.5
                assert entry["metrics"][metric]["stderr"] == pytest.approx(error)
    assert "5-shot" in out
    assert "InstructEval's prompt" in out
    assert "the clients' own models" in out
    # A suite that is asked again takes the place of its own results alone.
    code, _, err = fedsdr("evaluate", run, "--suite", "fpb", "--suite-data", folder)
    assert code == 0, err
    again = json.loads((run / "suites.json").read_text())
    assert again["fpb"]["num_questions"] == 2
    assert again["mmlu"] == saved["mmlu"]


def test_what_is_generated_leaves_room_for_the_prompt(run):
    site, _ = open_run(run)
    model = model_functions(site)
    assert model.longest == 512
    (said,) = model.complete(["word " * 400], (), 512)
    assert len(model.encode(said)) <= 512


def test_questions_too_long_for_the_model_lose_shots_and_then_their_beginning(run):
    site, _ = open_run(run)  # the tiny model has 512 positions
    model = model_functions(site)
    long = Question("q", "g", "z" * 900, "A", choices=("A", "B"), shots=("y" * 200 + "\n\n",) * 5)
    short = Question("q", "g", "z?", "A", choices=("A", "B"), shots=long.shots)
    _, fewest = task_of("mmlu", SUITES["mmlu"], [short], model)
    assert 0 < fewest < 5
    task, fewest = task_of("mmlu", SUITES["mmlu"], [short, long], model)
    assert fewest == 0
    assert len(samples(FunctionsLM(model), [task])) == 2


def test_a_method_without_private_branches_has_no_clients_column(
    fedsdr, write_config, tmp_path, folder
):
    out = tmp_path / "plain"
    config = write_config("federation.rounds=1", "method.name=plain", "data.max_examples=4")
    run_experiment(config, out, SILENT)
    code, printed, err = fedsdr("evaluate", out, "--suite", "fpb", "--suite-data", folder)
    assert code == 0, err
    assert json.loads((out / "suites.json").read_text())["fpb"]["clients"] == {}
    assert "clients" not in printed


WRONG = {
    "an unknown suite": (["--suite", "mlmu"], "did you mean 'mmlu'"),
    "code without leave": (["--suite", "humaneval"], "add --allow-code-execution"),
    "a folder that is not there": (["--suite", "mmlu", "--suite-data", "none"], "no such folder"),
    "no folder where one is needed": (["--suite", "crass"], "give --suite-data"),
    "an option of suites alone": (["--limit", "3"], "are of --suite"),
    "another run": (["--suite", "mmlu", "--set", "train.lr=1"], "not of a finished run"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line_and_nothing_is_written(case, fedsdr, run, folder):
    arguments, words = WRONG[case]
    if "--set" in arguments:
        arguments = [*arguments, "--suite-data", folder]
    before = sorted(run.rglob("*"))
    code, out, err = fedsdr("evaluate", run, *arguments)
    assert code == 2
    assert out == ""
    assert words in err.strip().splitlines()[-1]
    assert sorted(run.rglob("*")) == before


def test_without_the_harness_the_command_that_mends_it_is_said(
    fedsdr, tmp_path, folder, monkeypatch
):
    monkeypatch.setattr("fedsdr.extras.is_installed", lambda module: False)
    code, _, err = fedsdr("evaluate", tmp_path, "--suite", "mmlu", "--suite-data", folder)
    assert code == 2
    assert "pip install -e '.[suites]'" in err


def test_another_layout_is_found_before_a_model_is_loaded(
    fedsdr, run, folder, tmp_path, monkeypatch
):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "bbh" / "bbh" / "order.json").write_text("{}")
    monkeypatch.setattr("fedsdr.runs.run_folder.open_site", None)
    code, _, err = fedsdr("evaluate", run, "--suite", "mmlu,bbh", "--suite-data", broken)
    assert code == 2
    assert "order.json: another layout than expected" in err
    assert not (run / "suites.json").exists()
