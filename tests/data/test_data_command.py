"""`fedsdr data`: what a run would refuse is refused, and nothing steers the terminal."""

import json
import os
import shutil

import pytest
from tiny_tokenizers import CHATML
from transformers import AutoTokenizer

from fedsdr.config import load_config
from fedsdr.data.clients import load_clients


@pytest.fixture
def config(write_config, tmp_path):
    write_config()
    return tmp_path / "config.toml"


def rows_file(folder, name, *rows):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.clients={folder}"


def row(i, **columns):
    return {"instruction": f"q {i}", "output": f"a {i}", **columns}


def test_counts_are_those_of_the_rows_worked_out_with_the_tokenizer(
    fedsdr, config, tmp_path, model_folder
):
    answers = ["yes", "no, it is 7", "x" * 500]
    rows = [{"id": str(i), **row(i), "output": text} for i, text in enumerate(answers)]
    clients = rows_file(tmp_path / "own", "bank", *rows)
    code, out, _ = fedsdr("data", config, "--set", clients, "--set", "data.test_fraction=0")
    assert code == 0
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    lengths = [
        len(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": r["instruction"]},
                 {"role": "assistant", "content": r["output"]}],
                return_dict=False,
            )
        )
        for r in rows
    ]  # fmt: skip
    cells = next(line for line in out.splitlines() if "bank" in line).split()
    mean = sum(min(length, 128) for length in lengths) / 3
    assert cells[:4] == ["bank", "3", "0", f"{mean:.0f}"]
    assert [cell.strip() for cell in cells[5:7]] == ["1", "0"]
    assert f"({lengths[2] - 128} tokens cut" not in out  # one row is shown, not the third
    assert (
        f"({lengths[2] - 128} tokens cut"
        in fedsdr("data", config, "--set", clients, "--set", "data.test_fraction=0", "--rows", 3)[1]
    )


def test_brackets_and_control_characters_of_the_data_are_shown_as_they_are(
    fedsdr, config, tmp_path
):
    rows = [
        row(i, id=f"llama[/INST]-{i}", category=("[algebra]", "geo\x1b[31m")[i % 2])
        | {"output": "[bold]hi[/bold] \x1b]0;title\x07 \x9b2J"}
        for i in range(6)
    ]
    clients = rows_file(tmp_path / "own", "bank", *rows)
    code, out, _ = fedsdr("data", config, "--set", clients, "--rows", 9)
    assert code == 0
    for text in (
        "bank: llama[/INST]-",
        "[algebra]",
        "geo\\x1b[31m",
        "[bold]hi[/bold] \\x1b]0;title",
    ):
        assert text in out
    assert not set(out) & {"\x1b", "\x07", "\x9b"}


def test_control_characters_of_a_column_name_do_not_reach_the_terminal(fedsdr, config, tmp_path):
    clients = rows_file(tmp_path / "own", "bank", {"ask\x1b[2J\ud83d\u202e": "a"})
    code, _, err = fedsdr("data", config, "--set", clients)
    assert code == 2
    assert "columns ask\\x1b[2J\\ud83d\\u202e fit no format" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["method.name=fedsdrr"], "did you mean 'fedsdr'"),
        (["algorithm.name=fedavgg"], "did you mean 'fedavg'"),
        (["federation.min_updates=9"], "federation.min_updates: is 9"),
        (["teacher.engine=opnvino"], "did you mean 'openvino'"),
        (["teacher.prompts=none.toml"], "none.toml: no such file"),
        (["data.max_length=8"], "no supervised token in: the training rows of bank, the test rows"),
    ],
)
def test_what_a_run_would_refuse_is_refused(overrides, said, fedsdr, config):
    sets = [part for override in overrides for part in ("--set", override)]
    code, _, err = fedsdr("data", config, *sets)
    assert code == 2
    assert said in err


def test_test_rows_without_a_supervised_token_are_refused_as_by_a_run(fedsdr, config, tmp_path):
    long = [{"instruction": "q " * 200 + str(i), "output": "a"} for i in range(20)]
    clients = rows_file(tmp_path / "own", "bank", *long)
    code, _, err = fedsdr("data", config, "--set", clients)
    assert code == 2
    assert "the training rows of bank, the test rows of bank; a run would refuse" in err


def test_a_row_that_the_template_refuses_is_named_with_its_client(fedsdr, config, tmp_path):
    shutil.copytree(load_config(config).model.name, tmp_path / "model")
    shouts = CHATML.replace("m['content']", "m['content'].replace('q', 'Q')")
    (tmp_path / "model" / "chat_template.jinja").write_text(shouts)
    clients = rows_file(tmp_path / "own", "bank", *(row(i) for i in range(4)))
    model = f"model.name={tmp_path / 'model'}"
    code, _, err = fedsdr("data", config, "--set", clients, "--set", model)
    assert code == 2
    assert "client 'bank': row '" in err
    assert "rewrites turn 1 (user)" in err


def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(fedsdr, config, tmp_path):
    os.mkfifo(tmp_path / "bank.jsonl")
    code, _, err = fedsdr("data", config, "--set", f"data.clients=['{tmp_path / 'bank.jsonl'}']")
    assert code == 2
    assert "is a pipe or a device" in err


def test_the_rows_that_are_written_out_are_read_back_as_the_same(fedsdr, config, tmp_path):
    rows = [
        row(0, system="Be brief.", history=[["a", "b"]], input="x", category="c"),
        *(row(i) for i in range(1, 5)),
    ]
    clients = rows_file(tmp_path / "own", "bank", *rows)
    sets = "--set", clients, "--set", "data.validation_fraction=0.3"
    assert fedsdr("data", config, *sets, "--write", tmp_path / "sites")[0] == 0
    read = [
        {
            e.id: e
            for c in load_clients(load_config(config, [where]).data)
            for e in (*c.raw, *c.test)
        }
        for where in (clients, f"data.clients={tmp_path / 'sites'}")
    ]
    assert len(read[0]) == len(rows)
    assert read[0] == read[1]


def test_plot_draws_the_split_and_needs_no_model(fedsdr, config, tmp_path):
    rows = [row(i, category="sums" if i % 4 else "talk") for i in range(40)]
    rows_file(tmp_path / "own", "all", *rows)
    source = f"data.source={tmp_path / 'own' / 'all.jsonl'}"
    sets = ("data.clients=", source, "data.partition=natural", "data.test_fraction=0",
            "model.name=nothing/there")  # fmt: skip
    code, out, _ = fedsdr("data", config, "--plot", *(x for s in sets for x in ("--set", s)))
    assert code == 0
    assert out.splitlines() == [
        "rows of each client; a full bar of 60 letters is 30 rows",
        f"client-00  {'a' * 60}  30",
        f"client-01  {'b' * 20}{' ' * 40}  10",
        "a sums 30; b talk 10",
    ]


def test_columns_of_other_names_are_read_and_several_can_be_set_on_the_command_line(
    fedsdr, config, tmp_path
):
    rows = [{"query": f"q {i}", "reply": f"a {i}", "topic": "t"} for i in range(4)]
    clients = rows_file(tmp_path / "own", "bank", *rows)
    columns = ("data.columns.prompt=query", "data.columns.response=reply")
    sets = [x for s in (clients, *columns, "data.columns.category=topic") for x in ("--set", s)]
    code, out, _ = fedsdr("data", config, "--plot", *sets)
    assert (code, out.splitlines()[-1]) == (0, "a t 3")
    code, _, err = fedsdr("data", config, "--plot", "--set", "data.columns.promt=query")
    assert code == 2
    assert "did you mean 'prompt'?" in err
