"""Bad data files of many kinds, each with the one line that a user gets."""

import gzip
import json
import os
import socket

import pytest

from fedsdr.config import DataConfig
from fedsdr.data.clients import load_clients
from fedsdr.errors import UserError

ROWS = "".join(json.dumps({"instruction": f"q{i}", "output": f"a{i}"}) + "\n" for i in range(6))


def answer(value: str) -> str:
    return f'{{"instruction": "q", "output": {value}}}\n'


def turn(fields: str) -> str:
    return f'{{"messages": [{{{fields}}}, {{"role": "assistant", "content": "a"}}]}}\n'


BAD = {
    "a folder without data": ({}, "no .jsonl, .json, .csv, .parquet file in the folder"),
    "a compressed file alone": ({"a.jsonl.gz": gzip.compress(ROWS.encode())}, "no .jsonl, .json"),
    "a compressed file renamed": ({"a.jsonl": gzip.compress(ROWS.encode())}, "line 1: not UTF-8"),
    "a spreadsheet renamed": ({"a.csv": b"PK\x03\x04\xff\xfe"}, "line 1: not UTF-8"),
    "UTF-16": ({"a.jsonl": ROWS.encode("utf-16")}, "line 1: not UTF-8"),
    "UTF-32": ({"a.csv": "a,b\n".encode("utf-32")}, "line 1: not UTF-8"),
    "Latin-1 in line 7": ({"a.jsonl": ROWS.encode() + b'{"a": "\xe9"}\n'}, "line 7: not UTF-8"),
    "a byte order mark within": ({"a.jsonl": ROWS.encode() + b"\xef\xbb\xbf{}\n"}, "line 7:"),
    "NUL bytes after the rows": ({"a.jsonl": ROWS.encode() + bytes(1000)}, "line 7: broken JSON"),
    "an empty file": ({"a.jsonl": ""}, "the file has no rows"),
    "white space": ({"a.jsonl": " \n\n"}, "the file has no rows"),
    "a header alone": ({"a.csv": "instruction,output\n"}, "the file has no rows"),
    "a cut off row": ({"a.jsonl": ROWS[:-4]}, "line 6: broken JSON (Unterminated string"),
    "two objects on a line": ({"a.jsonl": "{}{}\n"}, "line 1: broken JSON (Extra data"),
    "rows in a .json": ({"a.json": ROWS}, "is there a row on each line? then end the file's name"),
    "a number for a list": ({"a.json": "3"}, "expected a list of rows"),
    "data that are null": ({"a.json": '{"data": null}'}, "expected a list of rows"),
    "a list for a row": ({"a.jsonl": "[1]\n"}, "a row must be an object, not list"),
    "deep nesting": ({"a.jsonl": "[" * 100_000 + "\n"}, "JSON that cannot be read (maximum rec"),
    "5,000 digits": ({"a.jsonl": answer("1" * 5000)}, "line 1: JSON that cannot be read (Exceeds"),
    "a number too large": ({"a.jsonl": answer("1e999")}, "'output' is 1e999, not a finite"),
    "infinity": ({"a.jsonl": answer("Infinity")}, "'output' is inf, not a finite number"),
    "NaN": ({"a.jsonl": answer("NaN")}, "row without a response: 'output' is missing or null"),
    "null": ({"a.jsonl": answer("null")}, "row without a response: 'output' is missing or null"),
    "a list for an answer": ({"a.jsonl": answer('["a"]')}, "'output' must be text, not list"),
    "an object for an answer": ({"a.jsonl": answer('{"a": 1}')}, "must be text, not dict"),
    "true for an answer": ({"a.jsonl": answer("true")}, "'output' must be text, not bool"),
    "an empty answer": ({"a.jsonl": answer('" "')}, "the response in 'output' is blank"),
    "half a surrogate pair": ({"a.jsonl": answer('"\\ud83d"')}, "half of a surrogate pair"),
    "an answer twice": ({"a.jsonl": answer('"a", "output": "b"')}, "two values for one key"),
    "columns of no format": ({"a.jsonl": '{"ask": 1, "say": 2}\n'}, "columns ask, say fit no"),
    "a column without a name": ({"a.csv": ",ask\n0,q\n"}, "columns , ask fit no format"),
    "two columns of one name": ({"a.csv": "a,a\n1,2\n"}, "line 1: two columns have one name"),
    "a field too few": ({"a.csv": "a,b\n1\n"}, "line 2: 1 fields where the header has 2"),
    "an open quote": ({"a.csv": 'a,b\n"1,2\n'}, "line 2: broken CSV"),
    "no role": ({"a.jsonl": turn('"content": "q"')}, "expected an object with role/content"),
    "an unknown role": ({"a.jsonl": turn('"role": "usr"')}, "did you mean 'user'?"),
    "a role that is null": ({"a.jsonl": turn('"role": null')}, "turn 1: unknown role 'None'"),
    "a turn without text": ({"a.jsonl": turn('"role": "user"')}, "turn 1 has no text"),
    "an image": (
        {"a.jsonl": turn('"role": "user", "content": [{"type": "image"}]')},
        "a part that is not text",
    ),
    "turns that are no list": ({"a.jsonl": '{"messages": {"role": "user"}}\n'}, "a list of turns"),
    "deep turns in a table": ({"a.csv": f'messages\n"{"[" * 50_000}"\n'}, "is text but not JSON"),
    "no answer": ({"a.jsonl": '{"messages": [{"role": "user", "content": "q"}]}\n'}, "no assistan"),
    "an id that is a list": ({"a.jsonl": '{"id": [1], ' + answer('"a"')[1:]}, "'id' must be"),
    "a system that is a list": (
        {"a.jsonl": '{"system": ["s"], ' + answer('"a"')[1:]},
        "'system' must be text, not list",
    ),
    "a Git LFS pointer": (
        {"a.parquet": "version https://git-lfs.github.com/spec/v1\noid sha256:1\n"},
        "run: git lfs pull",
    ),
    "text called Parquet": ({"a.parquet": "hello"}, "not a whole Parquet file"),
    "an empty Parquet file": ({"a.parquet": ""}, "not a whole Parquet file"),
    "a directory": ({"a.jsonl": os.mkdir}, "is a directory, not a file"),
    "a pipe": ({"a.jsonl": os.mkfifo}, "is a pipe or a device"),
    "a device": ({"a.jsonl": lambda path: os.symlink("/dev/zero", path)}, "is a pipe or a device"),
    "a link to itself": ({"a.jsonl": lambda path: os.symlink(path, path)}, "Too many levels"),
    "a link to nothing": ({"a.jsonl": lambda path: os.symlink("x", path)}, "No such file"),
    "two files of one name": ({"a.jsonl": ROWS, "a.csv": "prompt\nq\n"}, "two are called 'a'"),
    "a name that names no folder": ({"ä.jsonl": ROWS}, "cannot name a folder"),
    "a name of 230 letters": ({"b" * 230 + ".jsonl": ROWS}, "cannot name a folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_data_are_refused_in_one_line(case, tmp_path):
    files, said = BAD[case]
    for name, content in files.items():
        if callable(content):
            content(tmp_path / name)
        else:
            data = content if isinstance(content, bytes) else content.encode()
            (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        load_clients(DataConfig(clients=str(tmp_path)))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value) or "client name" in str(caught.value)


def test_a_socket_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket has at most 108 characters
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("a.jsonl")
        with pytest.raises(UserError, match="is a pipe or a device"):
            load_clients(DataConfig(clients="a.jsonl"))
