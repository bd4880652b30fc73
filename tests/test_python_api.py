"""`import fedsdr`: runs, tables, models and errors for programs and notebooks."""

import json
import subprocess
import sys

import pandas as pd
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import fedsdr

SETTINGS = {
    "train.batch_size": 4, "train.lr": 1e-2, "train.local_epochs": 1, "train.pack_tokens": 1024,
    "lora.rank": 2, "lora.alpha": 4, "teacher.filter": "none", "teacher.max_new_tokens": 4,
    "teacher.engine": "transformers", "evaluation.max_new_tokens": 4, "data.max_length": 128,
    "evaluation.retention": False, "model.dtype": "fp32",
}  # fmt: skip


def rows(name: str) -> pd.DataFrame:
    return pd.DataFrame(
        {"instruction": [f"{name} {i}" for i in range(10)], "output": [f"{i}" for i in range(10)]}
    )


@pytest.fixture(scope="module")
def start(model_folder, data_folder, tmp_path_factory):
    """Return a function that starts a small run of a data frame and a file."""
    data = {"ward": rows("ward"), "clinic": data_folder / "clinic.jsonl"}

    def run(**changes):
        given = {"model": model_folder, "data": data, "rounds": 2, "quiet": True, **changes}
        settings = SETTINGS | {"teacher.cache": str(tmp_path_factory.getbasetemp() / "cache")}
        return fedsdr.run(settings=settings | given.pop("settings", {}), **given)

    return run


@pytest.fixture(scope="module")
def run(start, tmp_path_factory):
    return start(method="fedsdr", out=tmp_path_factory.mktemp("api") / "run")


def test_importing_the_package_loads_nothing_slow_and_names_its_functions():
    code = (
        "import sys, fedsdr\n"
        "assert {'run', 'load_run', 'compare'} <= set(dir(fedsdr))\n"
        "fedsdr.load_config, fedsdr.run, fedsdr.load_run\n"
        "print({'torch', 'transformers', 'pandas'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
    with pytest.raises(AttributeError, match="no attribute 'trainn'"):
        fedsdr.trainn  # noqa: B018


def test_results_are_those_of_results_json_one_row_per_client_and_model(run):
    written = json.loads((run.folder / "results.json").read_text())
    table = run.results.set_index(["client", "model"])
    assert len(table) == 6
    for client in ("clinic", "ward"):
        for model in ("base", "global", "client"):
            assert (
                table.loc[(client, model), "loss"]
                == (written["clients"][client]["models"][model]["loss"])
            )


def test_rounds_have_a_row_per_round_and_client(run):
    table = run.rounds
    assert list(zip(table["round"], table["client"], strict=True)) == [
        (number, client) for number in (1, 2) for client in ("clinic", "ward")
    ]
    assert set(table["update"]) == {"accepted"}
    assert set(table["num_examples"]) == {9}


def test_answers_have_the_test_rows_with_gold_and_each_models_answer(run):
    table = run.answers
    assert sorted(table["model"].unique()) == ["base", "client", "global"]
    assert len(table) == 6
    ward = table[table["client"] == "ward"]
    assert {
        (prompt.split()[1], gold) for prompt, gold in zip(ward["prompt"], ward["gold"], strict=True)
    } == {(gold, gold) for gold in ward["gold"]}
    assert table["score"].between(0, 1).all()


def test_a_clients_model_is_a_peft_model_that_computes_what_plain_peft_does(
    run, model_folder, fedsdr_line, tmp_path
):
    assert fedsdr_line("export", run.folder, "--out", tmp_path / "a", "--client", "ward")[0] == 0
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    expected = PeftModel.from_pretrained(base, tmp_path / "a")
    tokens = torch.tensor([run.tokenizer("a loan")["input_ids"]])
    with torch.no_grad():
        own, general = run.model("ward"), run.model()
        assert isinstance(own, PeftModel)
        assert torch.equal(own(tokens).logits, expected(tokens).logits)
        assert not torch.equal(own(tokens).logits, general(tokens).logits)
    with pytest.raises(fedsdr.UserError, match=r"no client 'wart'.*did you mean 'ward'"):
        run.model("wart")


def test_chat_answers_with_base_global_and_one_clients_model(run):
    ask = run.chat("ward", max_new_tokens=3)
    assert list(ask("ward 1")) == ["base", "global", "client ward"]
    assert ask("ward 1") == ask("ward 1")


def test_the_same_call_reads_the_finished_run_and_other_rows_or_values_are_refused(run, start):
    before = (run.folder / "rounds.jsonl").read_bytes()
    assert start(method="fedsdr", out=run.folder) == run == fedsdr.load_run(run.folder)
    with pytest.raises(fedsdr.UserError, match=r"'train\.lr' was 0\.01 and is now 0\.1"):
        start(method="fedsdr", out=run.folder, settings={"train.lr": 0.1})
    with pytest.raises(fedsdr.UserError, match=r"ward.jsonl: has other rows.*choose another out"):
        start(method="fedsdr", out=run.folder, data={"ward": rows("yard")})
    with pytest.raises(fedsdr.UserError, match=r"clinic.jsonl: has rows that data does not name"):
        start(method="fedsdr", out=run.folder, data={"ward": rows("ward")})
    with pytest.raises(fedsdr.UserError, match="holds a run already"):
        start(method="fedsdr", out=run.folder, resume=False)
    assert (run.folder / "rounds.jsonl").read_bytes() == before


def test_the_rows_stay_private_and_the_run_can_be_measured_by_the_command(run, fedsdr_line):
    assert oct((run.folder / "data").stat().st_mode)[-3:] == "700"
    assert oct((run.folder / "data" / "ward.jsonl").stat().st_mode)[-3:] == "600"
    code, _, err = fedsdr_line("report", run.folder)
    assert code == 0, err
    assert run.report() == run.folder / "report.html"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"../up": [{"instruction": "a", "output": "b"}]}}, "client '../up'.*letters"),
        ({"data": {"a": 3}}, "is a int; give a file"),
        ({"data": {"a": "none.jsonl"}}, "none.jsonl: no such file"),
        ({"data": {"a": [{1, 2}]}}, "a row is not JSON"),
        ({"data": {}}, "names no client"),
        ({"data": {"a": [{"foo": "b"}] * 3}}, "foo"),
        ({"method": "fedsdrr"}, "did you mean 'fedsdr'"),
        ({"settings": {"train.lrr": 1}}, "unknown key 'train.lrr'.*did you mean 'train.lr'"),
        ({"rounds": 0}, "federation.rounds.*greater than or equal to 1"),
    ],
)
def test_what_the_user_can_fix_is_one_line_and_nothing_is_left(changes, words, start, tmp_path):
    with pytest.raises(fedsdr.UserError, match=words) as error:
        start(out=tmp_path / "run", **changes)
    assert "\n" not in str(error.value)
    assert error.value._render_traceback_() == [f"UserError: {error.value}"]
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(fedsdr.UserError, match="not a run folder"):
        fedsdr.load_run(tmp_path)


def test_tables_without_pandas_say_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(fedsdr.UserError, match=r"results: .*pip install 'fedsdr\[pandas\]'"):
        run.results  # noqa: B018


def test_a_comparison_has_the_rows_of_compare_csv_and_its_runs(start, model_folder, tmp_path):
    found = fedsdr.compare(
        model=model_folder,
        data={"ward": rows("ward"), "yard": rows("yard").to_dict("records")},
        methods=["plain", "local"],
        rounds=1,
        settings=SETTINGS,
        out=tmp_path / "study",
        quiet=True,
    )
    written = pd.read_csv(tmp_path / "study" / "compare.csv")
    assert list(found.table["variant"]) == list(written["variant"])
    assert found.table["loss"].tolist() == pytest.approx(written["loss"].tolist())
    assert sorted(run.config.method.name for run in found.runs) == ["local", "plain"]
    assert found.failed == {}
    assert found.report().exists()
    assert "<table>" in found._repr_html_()


@pytest.fixture
def fedsdr_line(request):
    """The command, whose fixture has the name of the package."""
    return request.getfixturevalue("fedsdr")
