import json

import pytest

from fedsdr.config import Config, load_config


@pytest.mark.parametrize("command", ["evaluate", "diagnose", "chat", "report"])
def test_a_path_that_no_file_can_have_is_one_line(command, fedsdr, tmp_path):
    code, _, error = fedsdr(command, tmp_path / ("x" * 300))
    assert code == 2
    assert "File name too long" in error
    assert error.count("\n") == 1


def test_init_makes_a_configuration_that_loads_with_every_default(fedsdr, tmp_path):
    code, out, _ = fedsdr("init", tmp_path / "study")
    assert code == 0
    assert "fedsdr run" in out
    loaded = load_config(tmp_path / "study" / "fedsdr.toml")
    clients = str(tmp_path / "study" / "data" / "clients")
    assert loaded == load_config(tmp_path / "study" / "fedsdr.toml", [f"data.clients={clients}"])
    # What the template writes out is the default, so that leaving a line out changes nothing.
    from dataclasses import replace

    assert replace(loaded, data=Config().data) == Config()
    assert replace(loaded.data, clients="") == Config().data
    assert (tmp_path / "study" / "data" / "clients").is_dir()
    assert fedsdr("init", tmp_path / "study")[0] == 2


def config_file(tmp_path, data: dict[str, str | bytes], extra: str = ""):
    folder = tmp_path / "clients"
    folder.mkdir()
    for name, content in data.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    path = tmp_path / "c.toml"
    path.write_text(f'[data]\nclients = "clients"\n{extra}')
    return path


GOOD = "".join(
    json.dumps({"instruction": f"q{i}", "input": "", "output": f"a{i}"}) + "\n" for i in range(6)
)
ROW = json.dumps({"instruction": "q", "input": "", "output": "a"})

BAD_DATA = {
    "a broken line": ({"a.jsonl": GOOD + '{"instruction": \n'}, "", r"a.jsonl.*line 7"),
    "a late broken line": ({"a.jsonl": f"{ROW}\n" * 2000 + "{\n"}, "", r"line 2001"),
    "a row without a response": (
        {"a.jsonl": GOOD + '{"instruction": "q", "output": " "}\n'}, "", r"a.jsonl.*line 7.*"),
    "an unknown layout": ({"a.jsonl": '{"foo": 1, "bar": 2}\n'}, "", r"foo.*bar"),
    "a wrong encoding": ({"a.jsonl": b'{"instruction": "\xff\xfe"}\n'}, "", r"UTF-8"),
    "an empty file": ({"a.jsonl": ""}, "", r"a.jsonl.*no rows"),
    "an empty folder": ({}, "", r"no .*file in the folder"),
    "two clients of one name": ({"a.jsonl": GOOD, "a.json": "[]"}, "", r"two .*'a'"),
    "no training row left": (
        {"a.jsonl": ROW + "\n"}, "test_fraction = 0.9\n", r"data.test_fraction"),
    "a missing folder": ({"a.jsonl": GOOD}, '[model]\nname = "./none"\n', r"no such folder"),
    "a mistyped key": ({"a.jsonl": GOOD}, "max_lenght = 3\n", r"did you mean 'data.max_length'"),
    "a wrong type": ({"a.jsonl": GOOD}, 'max_length = "long"\n', r"must be an integer"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_DATA)
def test_what_is_wrong_with_the_input_is_said_in_one_line(case, fedsdr, tmp_path):
    data, extra, words = BAD_DATA[case]
    path = config_file(tmp_path, data, extra)
    code, out, err = fedsdr("run", path, "--out", tmp_path / "run")
    assert code == 2
    assert out == ""
    lines = err.strip().splitlines()
    said = [line for line in lines if line.startswith("fedsdr: ")]
    assert len(said) == 1
    assert said == lines[-1:]
    assert "Traceback" not in err
    import re

    assert re.search(words, said[0]), said[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "missing.toml"],
        ["runn", "x.toml"],
        ["export", "nowhere", "--out", "x"],
        ["evaluate", "nowhere"],
        ["run", "x.toml", "--unknown"],
    ],
)
def test_a_wrong_command_line_is_answered_in_one_line(arguments, fedsdr, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = fedsdr(*arguments)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_doctor_names_what_is_missing_and_the_command_that_mends_it(fedsdr, monkeypatch):
    from fedsdr import embedded_packages as embedded

    monkeypatch.setattr(
        embedded, "find_spec", lambda name: None if name == "bfcl_eval" else object()
    )
    code, out, _ = fedsdr("doctor")
    assert code == 0
    assert "missing bfcl-eval" in out
    assert embedded.INSTALL in out


def test_ctrl_c_ends_with_130_and_the_command_that_goes_on(fedsdr, monkeypatch, tmp_path):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("fedsdr.config.load_config", stopped)
    path = tmp_path / "my c.toml"
    code, _, err = fedsdr("run", path, "--set", "seed=1")
    assert code == 130
    assert err.endswith(f"go on with: fedsdr run '{path}' --set seed=1 --resume\n")
    assert "Traceback" not in err


def test_a_fault_of_ours_is_not_hidden(fedsdr, monkeypatch, tmp_path):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("fedsdr.config.load_config", broken)
    with pytest.raises(ZeroDivisionError):
        fedsdr("run", tmp_path / "c.toml")


def test_doctor_with_a_configuration_prints_the_memory_of_a_step_by_part(fedsdr, tmp_path):
    from tiny import tiny_llama

    tiny_llama(packed=False).save_pretrained(tmp_path / "model")
    path = tmp_path / "c.toml"
    path.write_text(f'[model]\nname = "{tmp_path / "model"}"\ndevice = "cpu"\n')
    code, out, _ = fedsdr("doctor", path, "--set", "train.checkpointing=true")
    assert code == 0
    for part in ("weights", "adapters", "optimizer", "activations", "logits", "in total"):
        assert f" MiB  {part}" in out
    assert "pack size: 1,024 tokens, automatic" in out
    assert fedsdr("doctor", tmp_path / "none.toml")[0] == 2


def test_the_rows_of_a_partition_can_be_written_out_for_sites_of_their_own(fedsdr, tmp_path):
    path = config_file(tmp_path, {"a.jsonl": GOOD, "b.jsonl": GOOD.replace("q", "Q")})
    rows = tmp_path / "rows"
    code, out, _ = fedsdr("data", path, "--write", rows)
    assert code == 0
    assert f"2 files in {rows}" in out
    written = [json.loads(line) for line in (rows / "b.jsonl").read_text().splitlines()]
    assert sorted(row["instruction"] for row in written) == [f"Q{i}" for i in range(6)]
    code, _, error = fedsdr("data", path, "--write", rows)
    assert code == 2
    assert "a.jsonl exists already" in error


def test_data_and_doctor_print_json_alone(fedsdr, tmp_path):
    path = config_file(tmp_path, {"a.jsonl": GOOD, "b.jsonl": GOOD.replace("q", "Q")})
    code, out, _ = fedsdr("data", path, "--json")
    assert code == 0
    clients = json.loads(out)["clients"]
    rows = len(GOOD.splitlines())
    assert [(c["client"], c["train"] + c["test"]) for c in clients] == [("a", rows), ("b", rows)]
    code, out, _ = fedsdr("doctor", "--json")
    assert (code, set(json.loads(out))) == (0, {"machine", "embedded", "optional"})
