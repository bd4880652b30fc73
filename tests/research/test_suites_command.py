"""Public suites on a small run: against the harness's own model, and what the command leaves."""

import json
import shutil

import pytest
import torch
from tiny_suites import write_suites

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from fedsdr.progress import SILENT
from fedsdr.research.suites.catalogue import SUITES
from fedsdr.research.suites.harness import TwoBranchLM, ask, load_tasks
from fedsdr.runs.export import export_model
from fedsdr.runs.run import run_experiment
from fedsdr.runs.run_folder import open_run

# A model of random weights never stops by itself, and these let it go on for long.
LONG = ("bbh", "gsm8k", "humaneval")
SHORT = [name for name in SUITES if name not in LONG]


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


@pytest.mark.parametrize("name", ["mmlu", "drop"])
def test_branches_answer_as_the_harness_own_model_of_the_merged_export(name, run, folder, tmp_path):
    suite, tasks = SUITES[name], load_tasks(name, SUITES[name], folder)
    runtime, state = open_run(run)
    export_model(run, tmp_path / "merged", merge=True)
    theirs = HFLM(pretrained=str(tmp_path / "merged"), device="cpu", dtype=torch.float32)
    runtime.model.set(state.shared)
    expected_ids, expected = ask(theirs, suite, tasks, 6)
    with runtime.model.using("R"):
        ids, scores = ask(TwoBranchLM(runtime), suite, tasks, 6)
    assert ids == expected_ids
    assert scores.keys() == expected.keys()
    for metric in scores:
        assert scores[metric] == pytest.approx(expected[metric], abs=1e-4)


TEXTS = [("What is 1 + 1?\nAnswer:", " two"), ("What is 1 + 1?\nAnswer:", " one more"), ("a ", "b"),
         ("word " * 90, " the end")]  # fmt: skip


def requests(kind, arguments):
    return [Instance(kind, {}, args, i, ("task", i, 1)) for i, args in enumerate(arguments)]


def test_log_likelihoods_and_texts_equal_those_of_the_harness_own_model(run, tmp_path):
    runtime, state = open_run(run)
    export_model(run, tmp_path / "merged", merge=True)
    theirs = HFLM(pretrained=str(tmp_path / "merged"), device="cpu", dtype=torch.float32)
    runtime.model.set(state.shared)
    ours = TwoBranchLM(runtime)
    assert ours.max_length == theirs.max_length
    how = {"until": ["e"], "max_gen_toks": 8, "do_sample": False}
    asked = requests("generate_until", [(text, dict(how)) for text, _ in TEXTS[:3]])
    with runtime.model.using("R"):
        found = ours.loglikelihood(requests("loglikelihood", TEXTS))
        texts = ours.generate_until(asked)
    expected = theirs.loglikelihood(requests("loglikelihood", TEXTS), disable_tqdm=True)
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert texts == theirs.generate_until(asked, disable_tqdm=True)
    base = ours.loglikelihood(requests("loglikelihood", TEXTS))
    assert base != found  # the branch is what made the difference


def test_a_context_longer_than_the_window_loses_its_beginning_and_is_counted(run):
    runtime, _ = open_run(run)  # the tiny model has 512 positions
    lm = TwoBranchLM(runtime)
    assert lm.max_length == 512
    kept = lm.tokenizer.decode(lm.tok_encode("word " * 400 + "here")[-511:])
    long, short, fitting = lm.loglikelihood(
        requests("loglikelihood", [("word " * 400 + "here", "x"), ("here", "x"), (kept, "x")])
    )
    assert long == pytest.approx(fitting, abs=1e-5)
    assert long != pytest.approx(short, abs=1e-5)
    assert len(lm.cut) == 1
    how = {"until": [], "max_gen_toks": 512, "do_sample": False}
    (said,) = lm.generate_until(requests("generate_until", [("word " * 400, how)]))
    assert len(lm.tok_encode(said)) <= 512
    assert len(lm.cut) == 2


def test_suites_go_into_one_file_and_two_tables(fedsdr, run, folder):
    arguments = ("--suite-data", folder, "--limit", "2")
    code, out, err = fedsdr("evaluate", run, "--suite", ",".join(SHORT), *arguments)
    assert code == 0, err
    saved = json.loads((run / "suites.json").read_text())
    assert list(saved) == SHORT
    for name, suite in saved.items():
        assert suite["shots"] == SUITES[name].shots
        assert suite["num_questions"] == len(suite["ids"]) == 2
        assert suite["models"].keys() == {"base", "global"}
        assert suite["clients"].keys() == {"bank", "clinic", "school"}
        for entry in (*suite["models"].values(), *suite["clients"].values()):
            assert next(iter(entry["metrics"])) == SUITES[name].metric
            assert entry["seconds"] > 0
            for metric, scores in entry["scores"].items():
                assert len(scores) == suite["num_questions"]
                mean = sum(scores) / len(scores)
                assert entry["metrics"][metric]["mean"] == pytest.approx(mean)
                spread = sum((s - mean) ** 2 for s in scores) / (len(scores) - 1)
                error = (spread / len(scores)) ** 0.5
                assert entry["metrics"][metric]["stderr"] == pytest.approx(error)
    assert "the clients' own models" in out
    # A suite that is asked again takes the place of its own results alone.
    code, _, err = fedsdr("evaluate", run, "--suite", "fpb", "--suite-data", folder)
    assert code == 0, err
    again = json.loads((run / "suites.json").read_text())
    assert again["fpb"]["num_questions"] == 2
    assert again["mmlu"] == saved["mmlu"]


def test_a_method_without_private_branches_has_no_clients_and_long_answers_are_scored(
    fedsdr, write_config, tmp_path, folder
):
    out = tmp_path / "plain"
    config = write_config("federation.rounds=1", "method.name=plain", "data.max_examples=4")
    run_experiment(config, out, SILENT)
    arguments = ("--suite-data", folder, "--limit", "1", "--unsafe-code")
    code, printed, err = fedsdr("evaluate", out, "--suite", ",".join(LONG), *arguments)
    assert code == 0, err
    saved = json.loads((out / "suites.json").read_text())
    assert list(saved) == list(LONG)
    for name, suite in saved.items():
        assert suite["clients"] == {}
        metrics = suite["models"]["global"]["metrics"]
        assert next(iter(metrics)) == SUITES[name].metric
        assert all(values.keys() == {"mean"} for values in metrics.values())
    assert "clients" not in printed


WRONG = {
    "an unknown suite": (["--suite", "mlmu"], "did you mean 'mmlu'"),
    "code without leave": (["--suite", "humaneval"], "add --allow-code-execution"),
    "leave without a suite": (["--unsafe-code"], "need --suite"),
    "a folder that is not there": (["--suite", "mmlu", "--suite-data", "none"], "no file"),
    "no folder where one is needed": (["--suite", "crass"], "give --suite-data"),
    "an option of suites alone": (["--limit", "3"], "need --suite"),
    "another run": (
        ["--suite", "mmlu", "--set", "train.lr=1"],
        "cannot be changed for an existing run",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_command_is_one_line_and_nothing_is_written(case, fedsdr, run, folder):
    arguments, words = WRONG[case]
    if "--set" in arguments:
        arguments = [*arguments, "--suite-data", folder]
    before = sorted(run.rglob("*"))
    code, out, err = fedsdr("evaluate", run, *arguments)
    assert code == 2
    assert out == ""
    assert words in err.strip().splitlines()[-1]
    assert sorted(run.rglob("*")) == before


def test_without_the_harness_the_error_has_the_install_command(
    fedsdr, tmp_path, folder, monkeypatch
):
    monkeypatch.setattr("fedsdr.extras.is_installed", lambda module: False)
    code, _, err = fedsdr("evaluate", tmp_path, "--suite", "mmlu", "--suite-data", folder)
    assert code == 2
    assert "pip install 'fedsdr[suites]'" in err


def test_another_layout_is_found_before_a_model_is_loaded(
    fedsdr, run, folder, tmp_path, monkeypatch
):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "bbh" / "bbh" / "word_sorting.json").write_text("{}")
    monkeypatch.setattr("fedsdr.runs.client_runtime.open_runtime", None)
    code, _, err = fedsdr("evaluate", run, "--suite", "mmlu,bbh", "--suite-data", broken)
    assert code == 2
    assert "word_sorting.json: layout is not that of docs/suites.md: no 'examples'" in err
    assert not (run / "suites.json").exists()
