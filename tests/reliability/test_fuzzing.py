"""Every parser of files, answers and messages on arbitrary and on slightly broken input.

A parser returns a value or raises what its docstring names; anything else fails. With --full each
is fuzzed for a minute. guided_fuzzing.py has atheris choose the input of the same parsers.
"""

import contextlib
import io
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from tiny_tokenizers import tiny_tokenizer

from fedsdr.config import DataConfig, LoraConfig, load_study
from fedsdr.data.answer_parsing import code_of, kind_of, label_of, parse_call, parses
from fedsdr.data.chat_templates import render_for
from fedsdr.data.clients import load_clients
from fedsdr.data.number_parsing import final_number, numbers_in
from fedsdr.distill.cache import GenerationFile
from fedsdr.distill.records import RewriteRecord, read_records
from fedsdr.errors import UserError
from fedsdr.federation.checkpoint import load_state, save_state
from fedsdr.models.adapters import load_adapter, peft_config, peft_tensors, write_adapter_files
from fedsdr.research.judge.verdicts import Ballot, verdict_of
from fedsdr.teachers.openai_endpoint import MALFORMED, _generation, parse_address
from fedsdr.types import Example, ServerState, Turn

flwr = pytest.importorskip("flwr.app")
from fedsdr.flower.wire import (  # noqa: E402
    JoinReport,
    answer_from_records,
    report_from_records,
    task_from_records,
)

ROW = b'{"instruction": "q", "input": "", "output": "a"}\n'
CONVERSATION = (
    b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
)
TEXT = st.text(max_size=200)
HARD = (b"", 20_000 * b"[", 20_000 * b'{"a":', 5000 * b"1", b"\xef\xbb\xbf", 64 * b"\0")
RECORD = RewriteRecord("1", 0, "q", "a", "b", "rewrite", "", "text", 1, "teacher", 3, True)
STATE = {"R/a.lora_A": torch.ones(2, 3), "R/a.lora_B": torch.ones(3, 2)}


@st.composite
def broken(draw, *valid: bytes) -> bytes:
    """Return one of these with a few pieces replaced, or bytes of any kind."""
    data = bytearray(draw(st.sampled_from([*valid, *valid, *HARD])))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(data)


def parquet() -> bytes:
    table = pa.table({"instruction": ["q", "p"], "output": ["a", "b"], "score": [1.5, None]})
    pq.write_table(table, file := io.BytesIO())
    return file.getvalue()


def file_of(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def reads_config(folder, draw):
    name = draw(st.sampled_from(["c.toml", "c.yaml"]))
    valid = (b"[train]\nlr = 1e-3\n[compare]\nseeds = [1]\n", b"train: {lr: 1.0e-3}\nseed: 1\n")
    load_study(file_of(folder, name, draw(broken(*valid))))


def reads_data(folder, draw):
    ending = draw(st.sampled_from(["jsonl", "json", "csv"]))
    valid = (2 * ROW, 2 * CONVERSATION, b"instruction,output\nq,a\np,b\n", b"[" + ROW + b"]")
    path = file_of(folder, f"a.{ending}", draw(broken(*valid)))
    load_clients(DataConfig(clients=[str(path)]))


def reads_parquet(folder, draw):
    path = file_of(folder, "a.parquet", draw(broken(parquet())))
    load_clients(DataConfig(clients=[str(path)]))


def reads_answers(folder, draw):
    text = draw(TEXT | st.from_regex(r"[a-z]+\([^)]*\)|[-0-9.,/eE$ {}=#\\fracboxed]+"))
    final_number(text), numbers_in(text), parse_call(text), code_of(text), parses(text)
    label_of(text), kind_of([text])
    verdict_of(text, Ballot("bank", "row-1", ("a", "b")))


def reads_an_endpoint(folder, draw):
    valid = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": {}}
    with contextlib.suppress(*MALFORMED):  # then asked again
        _generation("row-1", draw(broken(json.dumps(valid).encode())))
    parse_address(draw(TEXT | st.from_regex(r"https?://[^/]*/v1")), "teacher.url")


def reads_rewrites(folder, draw):
    valid = json.dumps(asdict(RECORD)).encode() + b"\n"
    path = file_of(folder, "a.jsonl", draw(broken(valid)))
    GenerationFile(path).get("key")  # a line that cannot be read is made again
    read_records(path)


def reads_state(folder, draw):
    out = folder / "checkpoint"
    if not out.exists():
        state = ServerState(1, STATE, {}, {}, {"bank": 1})
        save_state(out, state)
    files = ["shared.safetensors", "state.json", "manifest.json", "manifest.sha256"]
    name = draw(st.sampled_from(files))
    path = out / "round-0001" / name
    before = path.read_bytes()
    try:
        path.write_bytes(draw(broken(before)))
        load_state(out)
    finally:
        path.write_bytes(before)


def reads_an_adapter(folder, draw):
    write_adapter_files(
        folder,
        peft_tensors(STATE, "R"),
        peft_config(STATE, "R", lora=LoraConfig(alpha=2), base_name="base"),
    )
    path = folder / "adapter_model.safetensors"
    path.write_bytes(draw(broken(path.read_bytes(), save(STATE))))
    load_adapter(folder, "R")


def renders_a_conversation(folder, draw):
    tokenizer = tiny_tokenizer()
    special = st.sampled_from(
        ["<|im_end|>", "<s>", "{{ x }}", "{% for %}", "\0"]
    )  # readers refuse surrogates
    turn = st.builds(Turn, st.sampled_from(["user", "assistant", "system"]), TEXT | special)
    example = Example("1", draw(TEXT | special), draw(TEXT), draw(TEXT | special), "")
    example = replace(example, history=tuple(draw(st.lists(turn, max_size=3))))
    tokenizer.chat_template = draw(
        st.sampled_from([tokenizer.chat_template, "{{ messages[0]['content'] }}", ""])
        | TEXT
        | st.from_regex(r"\{[{%] ?[a-z\[\]0-9.'() ]{0,20} ?[%}]\}")
    )
    render_for(tokenizer).encode(example, 64)


def reads_messages(folder, draw):
    scalar = st.integers(-(2**60), 2**60) | st.floats() | st.booleans() | TEXT
    name = (
        st.sampled_from(["round", "client_id", "num_examples", "reason", "client", "rows"]) | TEXT
    )
    config = st.builds(flwr.ConfigRecord, st.dictionaries(name, scalar, max_size=5))
    data = draw(broken(save(STATE)))
    arrays = flwr.ArrayRecord(
        {"safetensors": flwr.Array("uint8", (len(data),), "safetensors", data)}
    )
    names = ["task", "settings", "shared", "control", "update", "metrics", "delta",
             "control-delta", "fault", "report"]  # fmt: skip
    kind = st.sampled_from([arrays, flwr.MetricRecord({"a": 1.0})]) | config
    records = flwr.RecordDict(draw(st.dictionaries(st.sampled_from(names), kind)))
    for read in (
        task_from_records,
        answer_from_records,
        lambda found: report_from_records(found, JoinReport),
    ):
        with contextlib.suppress(ValueError):  # becomes a fault of the client
            read(records)


PARSERS = {
    parser.__name__: parser
    for parser in (
        reads_config, reads_data, reads_parquet, reads_answers, reads_an_endpoint, reads_rewrites,
        reads_state, reads_an_adapter, renders_a_conversation, reads_messages,
    )
}  # fmt: skip


def read_or_refused(parser, folder, draw):
    """Fail on anything but a value or a UserError of one line."""
    said = ""
    try:
        parser(folder, draw)
    except UserError as error:
        said = str(error)
    assert "\n" not in said


@pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS)
def test_any_input_is_read_or_refused_in_one_line(parser, full, tmp_path):
    examples = 0

    @settings(
        max_examples=200 if full else 50,
        database=None,
        suppress_health_check=list(HealthCheck),
        deadline=20_000,  # milliseconds: nothing may hang
    )
    @given(st.data())
    def read(data):
        nonlocal examples
        examples += 1
        read_or_refused(parser, tmp_path, data.draw)

    until = time.monotonic() + (60 if full else 0)
    read()
    while time.monotonic() < until:
        read()
    print(f"{parser.__name__}: {examples} inputs")
