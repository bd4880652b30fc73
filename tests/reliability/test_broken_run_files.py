"""Whatever stands in the place of a file of a run: one line that names it, exit code 2, no waiting.

The folder is one of an older version, whose files have no checksums: nothing but the reader of a
file finds what is wrong with it. tests/reliability/test_damaged_state.py is about checksums.
"""

import json
import os
import shutil
import signal

import pytest
from small_run import to_older_version

from fedsdr.cli.report import page_of
from fedsdr.distill.records import read_records
from fedsdr.errors import UserError
from fedsdr.files import write_atomically
from fedsdr.progress import SILENT
from fedsdr.report import findings
from fedsdr.report.run_section import run_section
from fedsdr.runs.run import run_experiment

STATE = "checkpoint/round-0001/state.json"
SHARED = "checkpoint/round-0001/shared.safetensors"
OWN = "clients/bank/round-0001/adapter_model.safetensors"

# file -> a command that reads it before it loads a model
READERS = {
    "config.toml": ["export", "RUN", "--out", "OUT"],
    STATE: ["export", "RUN", "--out", "OUT"],
    SHARED: ["export", "RUN", "--out", "OUT"],
    OWN: ["export", "RUN", "--client", "bank", "--out", "OUT"],
    "data.json": ["run", "CONFIG", "--out", "RUN", "--resume"],
    "rounds.jsonl": ["report", "RUN", "--out", "OUT"],
    "results.json": ["report", "RUN", "--out", "OUT"],
    "distilled/audit.json": ["report", "RUN", "--out", "OUT"],
    "diagnose.json": ["report", "RUN", "--out", "OUT"],
    "compare.json": ["report", "RUN", "--out", "OUT"],
}
CONTENT = {
    "not UTF-8": b"\xff\xfe{}",
    "NUL": bytes(20),
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "5,000 digits": b"1" * 5_000,
}
JSON_CONTENT = {
    "nothing": b"",
    "a cut object": b'{"round": 1, "clients"',
    "a list": b"[]",
    "a text": b'"x"',
    "null": b"null",
    "another object": b'{"a": {}}',
    "NaN": b'{"round": NaN}',
    "400 digits": b'{"round": %s}' % (b"1" * 400),
    "a lone surrogate": rb'{"round": "\ud800"}',
}
NO_FILE = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
}


@pytest.fixture(scope="module")
def old_run(tmp_path_factory, model_folder, data_folder):
    """A finished run of one round, without checksums, and its configuration."""
    from fedsdr.config import load_config

    folder = tmp_path_factory.mktemp("old")
    config, run = folder / "config.toml", folder / "run"
    config.write_text(
        f"""
        [model]
        name = "{model_folder}"
        [data]
        clients = "{data_folder}"
        max_length = 128
        [federation]
        rounds = 1
        [train]
        local_epochs = 1
        batch_size = 8
        pack_tokens = 512
        [lora]
        rank = 2
        [teacher]
        engine = "transformers"
        max_new_tokens = 4
        filter = "none"
        cache = "{folder / "cache"}"
        [evaluation]
        max_new_tokens = 2
        """
    )
    run_experiment(load_config(config), run, SILENT)
    to_older_version(run)
    assert page_of([run])  # it is a run that can be read
    return run, config


@pytest.fixture
def at_most_20_seconds():
    def stop(*_):
        raise TimeoutError("waited for a file")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def check(fedsdr, old_run, tmp_path, file, damage):
    """Damage the file in a copy of the run; the command that reads it must name it."""
    old, config = old_run
    run = tmp_path / "run"
    shutil.copytree(old, run)
    (run / file).unlink(missing_ok=True)
    damage(run / file)
    places = {"RUN": run, "CONFIG": config, "OUT": tmp_path / "out"}
    code, _, error = fedsdr(*(places.get(part, part) for part in READERS[file]))
    lines = [line for line in error.splitlines() if line.startswith("fedsdr:")]
    assert code == 2, error
    assert len(lines) == 1
    assert os.path.basename(file) in lines[0]
    assert len(lines[0]) < 1000
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", NO_FILE)
@pytest.mark.parametrize("file", READERS)
def test_what_is_no_file_is_named_and_never_waited_for(
    file, damage, fedsdr, old_run, tmp_path, at_most_20_seconds
):
    check(fedsdr, old_run, tmp_path, file, NO_FILE[damage])


@pytest.mark.parametrize("content", CONTENT)
@pytest.mark.parametrize("file", READERS)
def test_content_that_cannot_be_read_is_named(file, content, fedsdr, old_run, tmp_path):
    check(fedsdr, old_run, tmp_path, file, lambda path: path.write_bytes(CONTENT[content]))


@pytest.mark.parametrize("content", JSON_CONTENT)
@pytest.mark.parametrize("file", [f for f in READERS if f.endswith((".json", ".jsonl"))])
def test_json_of_another_shape_is_named(file, content, fedsdr, old_run, tmp_path):
    if (file, content) in (("rounds.jsonl", "nothing"), ("diagnose.json", "another object")):
        pytest.skip("that is a file of no rounds, or of no parts")
    check(fedsdr, old_run, tmp_path, file, lambda path: path.write_bytes(JSON_CONTENT[content]))


def parts_of(value, path=()):
    """Yield the path to every part of a JSON value; of several alike, to those of the first."""
    yield path
    items = []
    if isinstance(value, dict):
        alike = len(value) > 1 and all(isinstance(item, dict | list) for item in value.values())
        items = list(value.items())[: 1 if alike and path else None]
    elif isinstance(value, list):
        items = list(enumerate(value))[:1]
    for key, item in items:
        yield from parts_of(item, (*path, key))


def with_part(value, path, new):
    if not path:
        return new
    changed = value.copy()
    changed[path[0]] = with_part(value[path[0]], path[1:], new)
    return changed


@pytest.mark.parametrize("file", ["results.json", "rounds.jsonl", "distilled/audit.json"])
@pytest.mark.parametrize("new", [None, "text", [{}]], ids=str)
def test_a_part_of_another_type_is_named_or_not_read(file, new, old_run, tmp_path, monkeypatch):
    """Every part in turn: the report is made or the file is named; nothing else is raised."""
    monkeypatch.setattr(findings, "ratio_interval", lambda *_: [0.0, 0.0])  # resampling is slow
    shutil.copytree(old_run[0], tmp_path / "run")
    path = tmp_path / "run" / file
    whole = json.loads(path.read_text())
    outcomes = set()
    for part in parts_of(whole):
        path.write_text(json.dumps(with_part(whole, part, new)) + "\n")
        try:
            run_section(tmp_path / "run")
        except UserError as error:
            outcomes.add(str(path) in str(error))
    assert outcomes == {True}


@pytest.mark.parametrize("content", CONTENT | JSON_CONTENT)
def test_a_broken_file_of_rewrites_is_named(content, tmp_path):
    path = tmp_path / "bank.jsonl"
    path.write_bytes((CONTENT | JSON_CONTENT)[content] + b"\n")
    if content == "nothing":
        assert read_records(path) == ()
        return
    with pytest.raises(UserError, match=r"bank\.jsonl"):
        read_records(path)


def test_no_output_takes_the_place_of_a_pipe_or_a_device(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("pipe", "null"):
        with pytest.raises(UserError, match=rf"{name}: is a pipe or a device; name a file"):
            write_atomically(tmp_path / name, "text")
    assert not (tmp_path / "pipe").is_file()
    assert (tmp_path / "null").is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_lost_audit_is_named_by_evaluate_and_the_cost_is_not_written_without_it(
    old_run, tmp_path, fedsdr
):
    run = tmp_path / "run"
    shutil.copytree(old_run[0], run)
    (run / "distilled" / "audit.json").unlink()
    before = (run / "results.json").read_bytes()
    code, _, error = fedsdr("evaluate", run)
    assert code == 2
    assert error.endswith("audit.json: missing; restore it from a copy\n")
    assert (run / "results.json").read_bytes() == before
