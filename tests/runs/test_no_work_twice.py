import json
import subprocess
import sys

from fedsdr.data.chat_templates import Renderer
from fedsdr.data.clients import load_clients
from fedsdr.data.formats import example_from_row
from fedsdr.progress import SILENT
from fedsdr.runs import evaluation
from fedsdr.runs.client_runtime import open_runtime
from fedsdr.runs.evaluation import base_scores
from fedsdr.runs.run import run_experiment
from fedsdr.types import ClientData


def test_a_finished_run_is_resumed_without_loading_torch(write_config, tmp_path):
    out = tmp_path / "run"
    write_config("federation.rounds=1", "method.name=plain")
    command = ["run", tmp_path / "config.toml", "--out", out, "--resume"]
    command += ["--set", "federation.rounds=1", "--set", "method.name=plain"]
    config = write_config("federation.rounds=1", "method.name=plain")
    results = run_experiment(config, out, SILENT)
    code = (
        "import sys; from fedsdr.cli.main import main; main(); "
        "assert not {'torch', 'transformers', 'scipy'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "finished already, nothing to do" in done.stderr
    assert f"train R.raw {results['cost']['tokens']['train R.raw']:,.0f}" in done.stdout


def test_the_base_is_scored_once_for_the_same_rows_and_settings(
    write_config, tmp_path, monkeypatch
):
    def scores(*overrides):
        config = write_config(*overrides)
        return base_scores(open_runtime(config, tmp_path / "run"), load_clients(config.data))

    first = scores()
    monkeypatch.setattr(evaluation, "evaluate_model", lambda *_, **__: {})
    assert scores() == first
    assert scores("method.name=plain", "seed=3") == first
    assert scores("evaluation.max_new_tokens=5") == {}
    assert scores("data.max_test_examples=1", "data.test_fraction=0.5") == {}


def test_rows_that_differ_in_a_tool_result_alone_have_base_scores_of_their_own(
    write_config, tmp_path, monkeypatch
):
    def with_result(name):
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}
        row = {
            "messages": [
                {"role": "user", "content": "Which?"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "name": name, "tool_call_id": "1", "content": "5"},
                {"role": "assistant", "content": "It is 5."},
            ]
        }
        example = example_from_row(row, "row 1")
        return [ClientData("bank", (example,), (), (example,))]

    runtime = open_runtime(write_config(), tmp_path / "run")
    first = base_scores(runtime, with_result("f"))
    monkeypatch.setattr(evaluation, "evaluate_model", lambda *_, **__: {})
    assert base_scores(runtime, with_result("f")) == first
    assert base_scores(runtime, with_result("g")) == {}


def test_damaged_scores_of_the_base_are_measured_again(write_config, tmp_path):
    config = write_config()
    runtime, clients = open_runtime(config, tmp_path / "run"), load_clients(config.data)
    first = base_scores(runtime, clients)
    (path,) = (tmp_path / "cache" / "base_scores").glob("*.json")
    kept = json.loads(path.read_text())
    kept["value"]["bank"]["rows"][0]["score"] = 7.0
    path.write_text(json.dumps(kept))
    assert base_scores(runtime, clients) == first


def test_each_row_is_tokenised_once_in_a_run(write_config, tmp_path, monkeypatch):
    encoded = []
    encode = Renderer.encode

    def counted(self, example, max_length):
        encoded.append(example)
        return encode(self, example, max_length)

    monkeypatch.setattr(Renderer, "encode", counted)
    config = write_config("method.name=dual-raw", "evaluation.retention=false")
    run_experiment(config, tmp_path / "run", SILENT)
    assert len(encoded) == len(set(encoded)) == 30
