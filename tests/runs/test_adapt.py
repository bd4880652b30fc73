import json
import re

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fedsdr.data.clients import load_one_client
from fedsdr.models.adapters import load_adapter
from fedsdr.progress import SILENT
from fedsdr.runs.run import run_experiment
from fedsdr.runs.run_folder import open_run


def bytes_of(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def run(write_config, tmp_path):
    config = write_config('data.leave_out=["clinic"]', "evaluation.retention=false")
    run_experiment(config, tmp_path / "run", SILENT)
    return tmp_path / "run"


def test_a_client_that_took_no_part_gets_a_branch_beside_r_and_the_run_stays_as_it_is(
    run, data_folder, tmp_path, fedsdr, model_folder
):
    before, out = bytes_of(run), tmp_path / "adapted"
    options = ["--out", out, "--epochs", 4, "--points", 3]
    code, text, _ = fedsdr("adapt", run, data_folder / "clinic.jsonl", *options)
    assert code == 0
    assert bytes_of(run) == before
    found = json.loads((out / "adapt.json").read_text())
    assert (found["client"], found["rows"]) == ("clinic", {"training": 9, "test": 1})
    # 36 rows in steps of 4, 4 and 1: the first steps at or past each third.
    assert [point["rows_seen"] for point in found["curve"]] == [0, 13, 26, 36]
    first, last = found["curve"][0], found["curve"][-1]
    left = json.loads((run / "results.json").read_text())["took_no_part"]["clients"]["clinic"][
        "models"
    ]
    assert first["beside R"]["value"] == pytest.approx(left["global"]["loss"], rel=1e-5)
    assert first["on the bare base"]["value"] == pytest.approx(left["base"]["loss"], rel=1e-5)
    for branch in ("beside R", "on the bare base"):
        assert last[branch]["value"] < first[branch]["value"]
        after = found["models"][branch]["after"]
        assert after["loss"] == pytest.approx(last[branch]["value"], rel=1e-5)
    difference = last["beside R"]["value"] - last["on the bare base"]["value"]
    assert last["difference"]["value"] == pytest.approx(difference)
    assert "rows seen" in text
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    loaded = PeftModel.from_pretrained(base, out / "adapter")
    assert sum(p.abs().sum() for n, p in loaded.named_parameters() if "lora_B" in n) > 0


def test_the_branch_beside_r_has_the_loss_that_the_curve_ends_at(
    run, data_folder, tmp_path, fedsdr
):
    out = tmp_path / "adapted"
    fedsdr("adapt", run, data_folder, "--client", "clinic", "--out", out, "--points", 1)
    found = json.loads((out / "adapt.json").read_text())
    runtime, state = open_run(run)
    runtime.model.set({**state.shared, **load_adapter(out / "adapter", "S")})
    data = runtime.config.data
    client = load_one_client(data, str(data_folder / "clinic.jsonl"), "clinic")
    with runtime.model.using("R", "S"):
        [(loss, tokens)] = runtime.losses(client.test)
    assert loss / tokens == pytest.approx(found["curve"][-1]["beside R"]["value"], rel=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["{run}", "{data}/clinik.jsonl"], "no such file"),
        (["{run}", "{data}", "--client", "clinik"], "no client 'clinik'.*did you mean 'clinic'"),
        (["{data}", "{data}/clinic.jsonl"], "not a run folder"),
        (["{run}", "{data}/clinic.jsonl", "--set", "train.lr=1"], "cannot be changed"),
        (["{run}", "{data}/clinic.jsonl", "--out", "{run}"], "exists already"),
    ],
)
def test_what_the_user_can_fix_is_said_in_one_line(
    options, words, run, data_folder, tmp_path, fedsdr
):
    given = [text.format(run=run, data=data_folder) for text in options]
    if "--out" not in given:
        given += ["--out", str(tmp_path / "adapted")]
    code, _, error = fedsdr("adapt", *given)
    assert code == 2
    assert len(error.splitlines()) == 1
    assert re.search(words, error)
    assert not (tmp_path / "adapted").exists()


def test_a_method_without_a_shared_branch_has_nothing_to_adapt(
    write_config, data_folder, tmp_path, fedsdr
):
    config = write_config("federation.rounds=1", "method.name=local", "evaluation.retention=false")
    run_experiment(config, tmp_path / "run", SILENT)
    code, _, error = fedsdr(
        "adapt", tmp_path / "run", data_folder / "bank.jsonl", "--out", tmp_path / "o"
    )
    assert (code, "no shared R" in error) == (2, True)
