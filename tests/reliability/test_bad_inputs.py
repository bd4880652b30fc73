"""Eighty or more bad inputs of each kind: each ends in one line that names the place.

Without --full, every fifth of the slow kinds is tried.
"""

import gzip
import itertools
import shutil

import pytest
from fake_endpoint import server
from small_run import differences

from fedsdr.config import Config, DataConfig, key_names, load_study, value_of
from fedsdr.data.clients import load_clients
from fedsdr.errors import UserError
from fedsdr.teachers.openai_endpoint import openai_generate
from fedsdr.types import Decoding, GenerationRequest, Turn

DEEP, DIGITS = 20_000 * b"[", 5000 * b"1"


def refusal(work) -> str:
    """Return the one line that a user gets for this."""
    with pytest.raises(UserError) as caught:
        work()
    line = str(caught.value)
    assert "\n" not in line
    assert 10 < len(line) < 1500
    return line


def of_another_type(key: str) -> str:
    value = value_of(Config(), key)
    return '"x"' if isinstance(value, bool | int | float) or value is None else "-1"


CONFIGS = {
    f"{key} of another type": (
        "{}{} = {}\n".format(
            f"[{section}]\n" if section else "", name, of_another_type(key)
        ),
        f"'{key}'",
    )
    for key in key_names()
    for section, _, name in [key.rpartition(".")]
} | {
    "an unknown key": ("[train]\nlearning_rat = 1\n", "learning_rat"),
    "an unknown section": ("[trian]\nlr = 1\n", "trian"),
    "a key twice": ("seed = 1\nseed = 2\n", "not valid TOML"),
    "a section twice": ("[train]\n[train]\n", "not valid TOML"),
    "no value": ("seed =\n", "not valid TOML"),
    "an open string": ('[model]\nname = "a\n', "not valid TOML"),
    "JSON": ('{"seed": 1}', "not valid TOML"),
    "deep nesting": (f"seed = {'[' * 20_000}", "nested too deeply"),
    "5,000 digits": (f"seed = {'1' * 5000}", "not valid TOML"),
    "a date": ("seed = 2026-01-01\n", "'seed'"),
    "infinity": ("[train]\nlr = inf\n", "'train.lr'"),
    "NaN": ("[train]\nlr = nan\n", "'train.lr'"),
    "a negative number": ("[train]\nlr = -1.0\n", "'train.lr'"),
    "zero rounds": ("[federation]\nrounds = 0\n", "'federation.rounds'"),
    "a huge number": ("[train]\nbatch_size = 10000000000000\n", "'train.batch_size'"),
    "a table for a value": ("[seed]\na = 1\n", "'seed'"),
    "NUL": ("seed = 1\0\n", "not valid TOML"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_a_bad_configuration_is_refused_with_its_file_and_key(case, tmp_path):
    text, said = CONFIGS[case]
    path = tmp_path / "c.toml"
    path.write_text(text)
    line = refusal(lambda: load_study(path))
    assert line.startswith(str(path))
    assert said in line


ROW = '{"instruction": "q", "output": "a"}'
DAMAGES = {
    "empty": b"",
    "NULs": bytes(100),
    "line feeds": b"\n\n\n",
    "UTF-16": ROW.encode("utf-16"),
    "UTF-32": ROW.encode("utf-32"),
    "Latin-1": b"instruction,output\n\xe9,\xe9\n",
    "gzip": gzip.compress(ROW.encode()),
    "a picture": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "a spreadsheet": b"PK\x03\x04\x14\0\x06\0\xff\xfe",
    "a program": b"\x7fELF\x02\x01\x01\0\xff",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n",
    "an HTML page": b"<html><body>404</body></html>\n",
    "a number": b"3\n",
    "null": b"null\n",
    "an open bracket": b"[\n",
    "an open quote": b'"\n',
    "deep nesting": DEEP,
    "digits": DIGITS,
    "a lone surrogate": b'{"instruction": "q", "output": "\\ud800"}\n',
    "unknown columns": b'{"ask": 1, "say": 2}\n',
    "a null answer": b'{"instruction": "q", "output": null}\n',
    "an empty object": b"{}\n",
}
DATA = list(itertools.product(DAMAGES, (".jsonl", ".json", ".csv", ".parquet")))


@pytest.mark.parametrize(("damage", "ending"), DATA)
def test_a_bad_data_file_is_refused_with_its_name(damage, ending, tmp_path):
    path = tmp_path / f"bank{ending}"
    path.write_bytes(DAMAGES[damage])
    assert str(path) in refusal(lambda: load_clients(DataConfig(clients=str(tmp_path))))


RUN_FILES = (
    "config.toml",
    "data.json",
    "rounds.jsonl",
    "distilled/audit.json",
    "distilled/manifest.json",
    "distilled/bank.jsonl",
    "checkpoint/round-0001/manifest.json",
    "checkpoint/round-0001/state.json",
    "checkpoint/round-0001/shared.safetensors",
    "clients/bank/round-0001/manifest.json",
    "clients/bank/round-0001/adapter_model.safetensors",
)
RUN_DAMAGES = {
    "empty": b"",
    "NULs": bytes(100),
    "a list": b"[]",
    "null": b"null",
    "not UTF-8": b"\xff\xfe\xfa",
    "deep nesting": DEEP,
    "5,000 digits": DIGITS,
    "a folder": None,
}


def test_a_bad_file_of_a_run_is_refused_or_harmless_when_it_is_resumed(
    trial, half_run, full, tmp_path, monkeypatch
):
    monkeypatch.setenv("FEDSDR_CACHE", "")
    cases = list(itertools.product(RUN_FILES, RUN_DAMAGES))
    assert len(cases) >= 80
    wrong = {}
    for name, damage in cases if full else cases[::5]:
        out = tmp_path / "run"
        shutil.copytree(half_run, out)
        (out / name).unlink()
        content = RUN_DAMAGES[damage]
        (out / name).mkdir() if content is None else (out / name).write_bytes(content)
        try:
            trial.run(out, resume=True)
        except UserError as error:
            told = str(out / name) in str(error) or str((out / name).parent) in str(error)
            if not told or "\n" in str(error):
                wrong[f"{name}: {damage}"] = str(error)
        except Exception as error:
            wrong[f"{name}: {damage}"] = repr(error)[:300]
        else:
            if found := differences(trial, out):
                wrong[f"{name}: {damage}"] = found
        shutil.rmtree(out)
    assert wrong == {}


STATUS = [300, 304, 400, 401, 402, 403, 404, 405, 406, 408, 409, 410, 411, 413, 415, 418, 422, 429,
          431, 451, 500, 501, 502, 503, 504, 507, 511, 599]  # fmt: skip
VALUES = [b"null", b"true", b"3", b"1e999", b"-Infinity", b"[]", b"{}", b'""', b'"text"', b"[[]]"]
BODIES = [
    b"", b"\0", b"\xff\xfe", b"<html>", b"{", b"data: {}\n\n", DEEP, DIGITS, *VALUES,
    *(b'{"choices": ' + value + b"}" for value in [*VALUES, DEEP, DIGITS]),
    *(b'{"choices": [' + value + b"]}" for value in VALUES),
    *(b'{"choices": [{"message": ' + value + b"}]}" for value in VALUES),
    *(b'{"choices": [{"message": {"content": ' + value + b"}}]}"
      for value in (b"3", b"true", b"1e999", b"[1]", b'{"a": 1}', b'"\\ud800"')),
]  # fmt: skip
ANSWERS = [*((status, b"SECRET ROW") for status in STATUS), *((200, body) for body in BODIES)]


def test_a_bad_answer_of_an_endpoint_is_refused_with_its_address(full):
    assert len(ANSWERS) >= 80
    answers = ANSWERS if full else ANSWERS[::5]
    asked = [GenerationRequest("row-1", (Turn("user", "SECRET ROW"),), 1)]
    with server(lambda number, body: answers[number]) as endpoint:
        generate = openai_generate(endpoint.url, "m", attempts=1)
        for status, _ in answers:
            line = refusal(lambda: list(generate(asked, Decoding())))
            assert line.startswith(f"{endpoint.url}/chat/completions: ")
            assert str(status) in line
            assert "SECRET" not in line
