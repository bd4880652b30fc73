import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsdr.config import (
    Config,
    key_names,
    load_config,
    save_config,
    value_of,
)
from fedsdr.errors import UserError


def write(tmp_path, text):
    path = tmp_path / "c.toml"
    path.write_text(text)
    return path


def test_an_empty_file_gives_every_default(tmp_path):
    assert load_config(write(tmp_path, "")) == Config()


def test_a_saved_configuration_loads_as_the_same_values(tmp_path):
    config = load_config(
        write(tmp_path, ""),
        ["lora.target_modules=all-linear", "algorithm.tau=0.5", "data.clients=['a', 'hub:b/c']"],
    )
    save_config(config, tmp_path / "saved.toml")
    assert load_config(tmp_path / "saved.toml") == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[train]\nlearning_rate = 1\n", "unknown key 'train.learning_rate'"),
        ("[trian]\nlr = 1\n", "unknown key 'trian'.*'train"),
        ("rounds = 3\n", "did you mean 'federation.rounds'"),
        ("[train]\nlr = '1e-3'\n", r"'train.lr' is '1e-3'; it takes a number"),
        ("[train]\nlr = nan\n", r"'train.lr' is nan; it must be above 0"),
        ("[train]\nbatch_size = 1.5\n", "takes a whole number"),
        ("[model]\ntrust_remote_code = 1\n", "takes true or false"),
        ("[data]\ntest_fraction = 1.5\n", "a share from 0 to 0.99"),
        ("[data]\npartition = 'dirichlett'\n", "did you mean 'dirichlet'"),
        ("data = 3\n", r"write \[data\] and its keys"),
        ("[lora]\ntarget_modules = []\n", "is empty"),
        ("[data\n", "not valid TOML"),
    ],
)
def test_a_bad_key_or_value_is_named_with_its_mend(text, words, tmp_path):
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=words) as error:
        load_config(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("override", ["train.lr", "train.lr=fast", "trian.lr=1"])
def test_a_bad_override_is_quoted(override, tmp_path):
    with pytest.raises(UserError) as error:
        load_config(write(tmp_path, ""), [override])
    assert f"--set {override}" in str(error.value)


def test_paths_are_relative_to_the_file_and_those_of_overrides_to_the_working_directory(
    tmp_path, monkeypatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = write(tmp_path, "[data]\nclients = 'rows'\n[model]\nname = 'org/model'\n")
    assert load_config(path).data.clients == str(tmp_path / "rows")
    assert load_config(path).model.name == "org/model"
    overridden = load_config(path, ["data.clients=rows", "model.name=./m"])
    assert overridden.data.clients == str(tmp_path / "here" / "rows")
    assert overridden.model.name == str(tmp_path / "here" / "m")
    assert load_config(path, ["data.clients=hub:a/b"]).data.clients == "hub:a/b"


def test_every_key_can_be_set_to_its_own_default(tmp_path):
    names = key_names()
    assert {"train.lr", "seed"} <= set(names)
    path = write(tmp_path, "")
    for name in names:
        value = value_of(Config(), name)
        if value not in (None, ""):
            shown = str(value).lower() if isinstance(value, bool) else value
            assert load_config(path, [f"{name}={shown}"]) == Config()


@given(st.text(max_size=30))
def test_any_text_as_an_override_is_taken_or_refused_in_one_line(text):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), "")
        try:
            taken = load_config(path, [text])
        except UserError:
            return  # any other error would fail the test
        assert isinstance(taken, Config)
