import contextlib
import json
import os
import tempfile
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedsdr.config import (
    Config,
    key_names,
    load_config,
    load_study,
    nested,
    save_config,
    value_of,
    with_values,
)
from fedsdr.errors import UserError
from fedsdr.runs.config_schema import config_schema
from fedsdr.runs.run_folder import save_run_config
from fedsdr.saved_config import note_of, read_saved
from fedsdr.toml_yaml import read_table

SCHEMA = config_schema()["properties"]


def write(folder: Path, text: str | bytes, name: str = "c.toml") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def one_line(error: pytest.ExceptionInfo) -> str:
    """Return the message, after checking that it is a short line."""
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


def schema_of(key: str) -> dict:
    section, _, name = key.rpartition(".")
    return SCHEMA[section]["properties"][name] if section else SCHEMA[name]


def alternatives(key: str) -> list[dict]:
    """Return what a key takes, as JSON schemas of one type each."""
    return schema_of(key).get("anyOf", [schema_of(key)])


# Reading and writing


def test_an_empty_file_gives_every_default(tmp_path):
    assert load_config(write(tmp_path, "")) == Config()
    assert load_config(write(tmp_path, "", "c.yaml")) == Config()


def test_a_saved_configuration_loads_as_the_same_values(tmp_path):
    config = load_config(
        write(tmp_path, ""),
        ["lora.target_modules=all-linear", "algorithm.tau=0.5", "data.clients=['a', 'hub:b/c']"],
    )
    save_config(config, tmp_path / "saved.toml")
    assert load_config(tmp_path / "saved.toml") == config


def test_the_configuration_of_a_run_says_with_which_versions_it_was_made(tmp_path):
    config = replace(Config(), seed=3)
    save_run_config(config, tmp_path / "config.toml")
    versions, rows = note_of(read_saved(tmp_path / "config.toml")[0])
    torch = metadata.version("torch")
    assert versions.startswith("fedsdr ")
    assert f"torch {torch}, transformers {metadata.version('transformers')}" in versions
    assert rows == ""
    assert load_config(tmp_path / "config.toml") == config
    assert note_of("seed = 3\n") == ("", "")  # of an older version


def test_the_configuration_of_a_run_has_the_hash_of_its_rows(tmp_path):
    (tmp_path / "data.json").write_bytes(b"abc")
    save_run_config(Config(), tmp_path / "config.toml")
    # The first 16 digits of SHA-256("abc"), FIPS 180-2, appendix B.1.
    assert note_of(read_saved(tmp_path / "config.toml")[0])[1] == "ba7816bf8f01cfea"


def test_a_saved_configuration_has_every_key_that_has_a_value(tmp_path):
    save_config(Config(), tmp_path / "saved.toml")
    table = read_table(tmp_path / "saved.toml", "")
    saved = {"seed"} | {f"{s}.{k}" for s, keys in table.items() if s != "seed" for k in keys}
    assert saved == {key for key in key_names() if value_of(Config(), key) not in (None, {})}


def test_a_configuration_of_an_older_version_loads_without_the_key_that_was_removed(tmp_path):
    path = write(tmp_path, "[lora]\nrank = 4\nfrozen_dropout = false\n")
    assert load_config(path) == load_config(path, ["lora.frozen_dropout=false"])
    assert load_study(write(tmp_path, "[compare]\nreference = ''\n"))[0] == Config()
    path = write(tmp_path, "[lora]\nfrozen_dropout = true\n")
    with pytest.raises(UserError, match=r"lora\.frozen_dropout.*no longer exists; delete") as error:
        load_config(path)
    one_line(error)


def test_a_value_cannot_be_changed_in_place_and_a_copy_is_checked():
    with pytest.raises(AttributeError):
        Config().seed = 1
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        replace(Config().federation, rounds=0)


def test_an_integer_stands_for_a_float_and_lora_alpha_keeps_it(tmp_path):
    config = load_config(write(tmp_path, "[train]\nlr = 1\n[lora]\nalpha = 32\n"))
    assert type(config.train.lr) is float
    assert type(config.lora.alpha) is int  # as PEFT's lora_alpha


def test_paths_are_relative_to_the_file_and_those_of_overrides_to_the_working_directory(
    tmp_path, monkeypatch
):
    (tmp_path / "here" / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    path = write(tmp_path, "[data]\nclients = 'rows'\n[model]\nname = 'org/model'\n")
    assert load_config(path).data.clients == str(tmp_path / "rows")
    overridden = load_config(path, ["data.clients=rows", "data.source=['a', 'hub:b/c']"])
    assert overridden.data.clients == str(tmp_path / "here" / "rows")
    assert overridden.data.source == [str(tmp_path / "here" / "a"), "hub:b/c"]
    assert overridden.model.name == "org/model"  # the file's, so no folder of the working directory
    local = str(tmp_path / "here" / "org" / "model")
    assert load_config(path, ["model.name=org/model"]).model.name == local
    assert load_config(path, ["model.name=./m"]).model.name == str(tmp_path / "here" / "m")


# Every key


@pytest.mark.parametrize("key", key_names())
def test_every_key_of_the_reference_can_be_set_by_an_override(key, tmp_path):
    reference = Path(__file__).parents[1] / "docs" / "reference.md"
    assert f"| `{key.rpartition('.')[2]}` |" in reference.read_text()
    kind = alternatives(key)[0]
    value = {
        "string": kind.get("enum", ["words"])[-1],
        "boolean": True,
        "integer": kind.get("minimum", kind.get("exclusiveMinimum", 0)) + 1,
        "number": max(kind.get("minimum", 0), kind.get("exclusiveMinimum", 0)) or 0.01,
        "array": ["words"] if kind.get("items", {}).get("type") == "string" else [3],
        "object": {},
    }[kind["type"]]
    loaded = load_config(write(tmp_path, ""), [f"{key}={json.dumps(value)}"])
    set_to = value_of(loaded, key)
    assert set_to == value or set_to in (str(Path.cwd() / "words"), [str(Path.cwd() / "words")])
    others = {k: value_of(loaded, k) for k in key_names() if k != key}
    assert others == {k: value_of(Config(), k) for k in others}


BOUNDS = [
    (key, bound, kind[bound])
    for key in key_names()
    for kind in alternatives(key)
    for bound in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
    if bound in kind
]


@pytest.mark.parametrize(("key", "bound", "limit"), BOUNDS)
def test_a_value_beyond_a_bound_is_refused_in_one_line(key, bound, limit, tmp_path):
    integer = all(kind["type"] == "integer" for kind in alternatives(key))
    step = 0 if bound.startswith("exclusive") else 1 if integer else max(abs(limit), 1e-9) / 2
    beyond = limit - step if "inimum" in bound else limit + step
    with pytest.raises(UserError, match=f"'{key}' is .*; it must be (greater|less) than") as error:
        load_config(write(tmp_path, ""), [f"{key}={beyond}"])
    assert one_line(error).startswith(f"--set {key}={beyond}")
    if not bound.startswith("exclusive"):
        load_config(write(tmp_path, ""), [f"{key}={limit}"])


def test_the_bounds_are_those_of_the_rules_and_distributions_behind_them():
    assert {key for key, bound, limit in BOUNDS if (bound, limit) == ("exclusiveMaximum", 1)} == {
        "algorithm.beta", "algorithm.b1", "algorithm.b2"
    }  # fmt: skip
    assert ("privacy.delta", "maximum", 0.1) in BOUNDS
    assert ("data.test_fraction", "maximum", 0.99) in BOUNDS
    assert ("train.lr", "exclusiveMinimum", 0) in BOUNDS
    floats = [k for k in key_names() if any(a["type"] == "number" for a in alternatives(k))]
    assert {key for key, *_ in BOUNDS} >= set(floats)


@pytest.mark.parametrize("key", key_names())
@pytest.mark.parametrize("value", ["nan", "inf", "1979-05-27", "[[1]]", "{a = 'b'}", "9" * 30])
def test_a_value_that_no_key_takes_is_refused_in_one_line(key, value, tmp_path):
    with pytest.raises(UserError, match=key.replace(".", r"\.")) as error:
        load_config(write(tmp_path, ""), [f"{key}={value}"])
    one_line(error)


# What is wrong is named


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[trian]\nlr = 1\n", "unknown key 'trian'; did you mean 'train'"),
        ("[train]\nlrr = 1\n", "unknown key 'train.lrr'; did you mean 'train.lr'"),
        ("rounds = 3\n", "did you mean 'federation.rounds'"),
        ("[model]\nalpha = 3\n", "did you mean 'data.alpha' or 'lora.alpha'"),
        ("[train]\nlr = '1e-3'\n", r"'train.lr' is '1e-3'; it must be a number"),
        ("[train]\nlr = nan\n", r"'train.lr' is nan; it must be a finite number"),
        ("[train]\nlr = 0\n", r"'train.lr' is 0; it must be greater than 0"),
        ("[train]\nbatch_size = 1.5\n", "'train.batch_size' is 1.5; it must be an integer"),
        ("[train]\nbatch_size = true\n", "'train.batch_size' is True; it must be an integer"),
        ("[model]\ntrust_remote_code = 1\n", "it must be true or false"),
        ("[data]\ntest_fraction = 1.5\n", "less than or equal to 0.99"),
        ("[data]\nclients = 3\n", "'data.clients' is 3; it must be text or a list"),
        ("[data]\nclients = ['a', 3]\n", r"'data.clients\[1\]' is 3; it must be text"),
        ("[privacy]\nmode = 'centrall'\n", "'none', 'central' or 'local'; did you mean 'central'"),
        ("data = 3\n", r"write \[data\] and its keys"),
        ("[lora]\ntarget_modules = []\n", r"'lora.target_modules' is \[\]; .* not empty"),
        ("[lora]\ntarget_modules = ''\n", "'lora.target_modules' is ''; .* not empty"),
        ("[compare]\nmethod = ['plain']\n", "did you mean 'compare.methods'"),
        ("[compare]\nseeds = 3\n", "'compare.seeds' is 3; it must be a list"),
        ("compare = 3\n", r"write \[compare\] and its keys"),
        ("[data\n", r"not valid TOML: .*line 1"),
    ],
)
def test_a_bad_key_or_value_is_named_with_what_is_allowed(text, words, tmp_path):
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=words) as error:
        load_config(path)
    assert one_line(error).startswith(str(path))


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        ("learning_rate", "'train.lr'"),
        ("num_train_epochs", "'train.local_epochs'"),
        ("per_device_train_batch_size", "'train.batch_size'"),
        ("gradient_accumulation_steps", "'train.batch_size'"),
        ("gradient_checkpointing", "'train.checkpointing'"),
        ("max_seq_length", "'data.max_length'"),
        ("model_name_or_path", "'model.name'"),
        ("load_in_4bit", "'model.quantize'"),
        ("r", "'lora.rank'"),
        ("lora_alpha", "'lora.alpha'"),
        ("lora_dropout", "'lora.dropout'"),
        ("weight_decay", "'train.weight_decay'"),
        ("num-server-rounds", "'federation.rounds'"),
        ("fraction_fit", "'federation.clients_per_round'"),
        ("dirichlet_alpha", "'data.alpha'"),
        ("proximal_mu", "'algorithm.mu'"),
        ("output_dir", "--out"),
        ("warmup_ratio", "'train.warmup_rounds'"),
        ("optim", "'train.optimizer'"),
        ("use_dora", "would not add up"),
    ],
)
def test_a_key_of_another_library_is_answered_with_ours(theirs, words, tmp_path):
    for text in (f"{theirs} = 1\n", f"[lora]\n{theirs} = 1\n", f"[training]\n{theirs} = 1\n"):
        with pytest.raises(UserError) as error:
            load_config(write(tmp_path, text))
        if "[training]" not in text:
            assert words in one_line(error)


@pytest.mark.parametrize("override", ["train.lr", "train.lr=fast", "trian.lr=1", "train.lr=1\nx=2"])
def test_a_bad_override_is_quoted(override, tmp_path):
    with pytest.raises(UserError) as error:
        load_config(write(tmp_path, ""), [override])
    assert f"--set {override}" in str(error.value)


def test_the_compare_section_is_not_for_overrides(tmp_path):
    with pytest.raises(UserError, match=r"in the file or .* options of fedsdr compare"):
        load_config(write(tmp_path, ""), ["compare.methods=['plain']"])


# YAML


YAML = """
seed: 1
train: {lr: 3e-4, local_epochs: 2, checkpointing: true}
data:
  clients: [no, off, "12", '~']   # YAML 1.1 would read the first two as false
  include:
algorithm:
  lr: ~
  tau: 1_000
lora:
federation:
  max_update_norm: +.inf
"""


def test_a_yaml_file_has_the_values_of_the_toml_file(tmp_path):
    config = load_config(Path(__file__).parents[1] / "examples" / "study.toml")
    save_config(config, tmp_path / "c.toml")
    text = yaml.safe_dump(read_table(tmp_path / "c.toml", ""))
    assert load_config(write(tmp_path, text, "c.yaml")) == config
    assert load_config(write(tmp_path, text, "c.YML")) == config


plain_values = st.recursive(
    st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]))
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.text("ab_-12", min_size=1), plain_values, max_size=4))
def test_json_is_read_as_the_yaml_that_it_is(table):
    with tempfile.TemporaryDirectory() as folder:
        as_json = write(Path(folder), json.dumps(table, ensure_ascii=False), "c.yaml")
        assert read_table(as_json, "") == table


def test_plain_scalars_of_yaml_are_read_as_toml_reads_them(tmp_path):
    text = "a: 3e-4\nb: 1_000\nc: no\nd: off\ne: 12:30\nf: '3'\ng: ~\nh:\ni: true\nj: 010\nk: 0x10"
    assert read_table(write(tmp_path, text, "c.yaml"), "") == {
        "a": 3e-4, "b": 1000, "c": "no", "d": "off", "e": "12:30", "f": "3", "g": None, "h": None,
        "i": True, "j": "010", "k": 16,
    }  # fmt: skip


def test_an_empty_section_and_null_leave_the_defaults(tmp_path):
    path = write(tmp_path, "data:\ntrain: ~\nalgorithm: {lr: null}\n", "c.yml")
    assert load_config(path) == Config()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {lr: 1", r"not valid YAML: .*line 1"),
        ("train:\n  lr: 1\n  lr: 2", r"'lr' is set twice \(line 3\)"),
        ("train: {}\ntrain: {}", r"'train' is set twice \(line 2\)"),
        ("a: &a [b]\nc: *a", r"aliases .* not supported \(line 2\)"),
        ("a: &a {b: *a}", "aliases .* not supported"),
        ("train: !!python/object/apply:os.getcwd []", r"tags .* not supported \(line 1\)"),
        ("lora: {rank: !!int '8'}", "tags .* not supported"),
        ("train: {lr: fast}", "'train.lr' is 'fast'; it must be a number"),
        ("train: {checkpointing: yes}", "'yes'; it must be true or false"),
        ("data: {clients: 2024-01-01}", "'data.clients' is a date; put it in quotes"),
        ("data: {clients: 2024-01-01T10:00:00}", "is a datetime; put it in quotes"),
        ("federation: {rounds: ~}", "'federation.rounds' is None; it must be an integer"),
        ("1: 2", "unknown key '1'"),
        ("? [a]\n: 2", "a key must be text"),
        ("- a", r"must hold keys and values, not \['a'\]"),
        ("just words", "must hold keys and values"),
        ("--- {}\n--- {}", "not valid YAML"),
        ("\x01", "not valid YAML"),
        ("a: [" * 5000, "nested too deeply"),
        ("a: " + "[" * 9000 + "]" * 9000, "nested too deeply"),
        ("- " * 9000, "nested too deeply"),
    ],
)
def test_bad_yaml_is_refused_in_one_line(text, words, tmp_path):
    path = write(tmp_path, text, "c.yaml")
    with pytest.raises(UserError, match=words) as error:
        load_config(path)
    assert one_line(error).startswith(str(path))


# Files and values that are hard to read


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"x = " + b"[" * 5000 + b"]" * 5000, "nested too deeply"),
        (b"x = " + b"[" * 90 + b"]" * 90, "'x' is nested too deeply"),
        (b"x" + b".x" * 100 + b" = 1", "nested too deeply"),
        (b"x" + b".x" * 130_000 + b" = 1", "nested too deeply"),
        (b"[" + b"'x' . " * 40_000 + b"x]", "nested too deeply"),
        (b"x = {" + b"x." * 130_000 + b"x = 1}", "nested too deeply"),
        (b"[train]\nlr = 1" + b"0" * 400, "'train.lr' is an integer of more than 64 bits"),
        (b"[train]\nlr = 1" + b"0" * 5000, "not valid TOML: .*5001 digits$"),
        (b"[train]\nlr = 0x1" + b"0" * 5000, "'train.lr' is an integer of more than 64 bits"),
        (b"seed = 9223372036854775808", "'seed' is an integer of more than 64 bits"),
        (b"[compare]\nsweep.seed = [9223372036854775808]", "compare.sweep.seed"),
        (b'[data]\nclients = "a\\u0000b"', "'data.clients' has text with a NUL"),
        (b'"a\\u0000b" = 3', "a key.* has text with a NUL"),
        (b'[data]\nclients = "/' + b"x" * 5000 + b'"', "'data.clients' is .*: File name too long"),
        (b'[model]\nname = "' + b"x" * 300 + b'"', "'model.name' is .*: File name too long"),
        (b'[teacher]\ncache = "~nobody-of-this-name/x"', "'teacher.cache' is '~nobody"),
        (b"y" * 5000 + b" = 1", "unknown key 'yyy"),
        (b"\xff\xfe", "not UTF-8"),
        ("[train]\nlr = 1\n".encode("utf-16"), "not UTF-8"),
        (b"[data]\nclients = 'a\x00b'", "not valid TOML"),
        (b"#" * (2**18 + 1), "larger than 256 KiB"),
    ],
)
def test_a_file_that_cannot_be_a_configuration_is_refused_in_one_line(content, words, tmp_path):
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=words) as error:
        load_config(path)
    assert str(path) in one_line(error)


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    assert load_config(write(tmp_path, b"\xef\xbb\xbf[train]\r\nlr = 0.5\r\n")).train.lr == 0.5
    yaml_file = write(tmp_path, b"\xef\xbb\xbftrain:\r\n  lr: 0.5\r\n", "c.yaml")
    assert load_config(yaml_file).train.lr == 0.5


def test_a_pipe_a_device_a_folder_and_a_missing_file_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    for path, words in [
        (tmp_path / "pipe.toml", "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path, "is a folder"),
        (tmp_path / "none.toml", "no such file.*fedsdr init"),
        (tmp_path / "pipe.toml" / "c.toml", "cannot be read: Not a directory"),
        (tmp_path / ("x" * 300), "cannot be read: File name too long"),
        (Path("a\0b"), "cannot be read"),
        (Path("a\ud800b"), "cannot be read"),
    ]:
        with pytest.raises(UserError, match=words) as error:
            load_config(path)
        one_line(error)


@pytest.mark.parametrize(
    "override",
    [
        "train.lr=" + "[" * 5000,
        "train.lr=1" + "0" * 400,
        "train.lr=1" + "0" * 5000,
        "data.clients=/" + "x" * 5000,
        "data.clients=a\udcffb",
        "data.clients=~nobody-of-this-name/x",
        "data" + ".x" * 4000 + "=1",
        "data={x" + ".x" * 100_000 + "=1}",
        "x" * 5000 + "=1",
    ],
    ids=lambda text: text[:20].encode("ascii", "replace").decode(),
)
def test_an_override_that_is_hard_to_read_is_refused_in_one_line(override, tmp_path):
    with pytest.raises(UserError, match=r"^--set ") as error:
        load_config(write(tmp_path, ""), [override])
    one_line(error)


def test_values_that_come_by_another_way_are_checked_as_well():
    for key, value in [("train.lr", 10**400), ("data.clients", "a\ud800"), ("data.include", (1,))]:
        with pytest.raises(UserError, match=f"^there: '{key}'") as error:
            with_values(Config(), nested(key, value), "there", Path())
        one_line(error)


@given(st.text(max_size=30))
def test_any_text_as_an_override_is_taken_or_refused_in_one_line(text):
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), "")
        with contextlib.suppress(UserError):  # any other error fails the test
            assert isinstance(load_config(path, [text]), Config)


@given(st.sampled_from(key_names()), st.text(max_size=20), st.sampled_from(["c.toml", "c.yaml"]))
def test_any_text_in_a_file_is_taken_or_refused_in_one_line(key, text, name):
    with tempfile.TemporaryDirectory() as folder:
        sign = ": " if name.endswith("yaml") else " = "
        content = (key.rpartition(".")[2] + sign + text).encode("utf-8", "surrogatepass")
        with contextlib.suppress(UserError):  # any other error fails the test
            load_study(write(Path(folder), content, name))


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("http://me:secret@host:8000/v1", "http://host:8000/v1"),
        ("https://a@b:c@host/v1/@x?q=@y", "https://host/v1/@x?q=@y"),
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("http://[", "http://["),  # urllib cannot parse it
        ("", ""),
    ],
)
def test_a_saved_configuration_has_no_password(url, safe, tmp_path):
    config = replace(Config(), teacher=replace(Config().teacher, url=url))
    save_config(config, tmp_path / "saved.toml")
    assert load_config(tmp_path / "saved.toml").teacher.url == safe


def test_a_list_of_very_many_wrong_items_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"'data.include\[0\]' is 1; it must be text") as error:
        load_config(write(tmp_path, f"[data]\ninclude = [{'1,' * 100_000}]"))
    one_line(error)
