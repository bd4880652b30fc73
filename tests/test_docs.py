import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from fedsdr.config import Config, key_names, load_config, nested, save_config, with_values
from fedsdr.data.partition import PARTITIONERS
from fedsdr.errors import UserError
from fedsdr.flower.app_folder import write_app
from fedsdr.flower.run_config import to_run_config
from fedsdr.runs.config_schema import REGISTRIES, check_names, config_schema

ROOT = Path(__file__).parents[1]
VALIDATOR = Draft202012Validator(config_schema())


@pytest.mark.parametrize(("script", "page"), [("reference", "reference"), ("errors", "page")])
def test_the_generated_pages_are_those_of_the_program(script, page, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    made = getattr(importlib.import_module(f"make_{script}"), page)()
    assert (ROOT / "docs" / f"{script}.md").read_text() == made, (
        f"stale: run python docs/make_{script}.py"
    )


def test_the_page_of_errors_has_a_message_with_its_constants_filled_in(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    made = importlib.import_module("make_errors").page()
    assert "- `--federation: needs --engine flower`" in made
    assert "<INSTALL>" not in made


def test_the_flower_app_declares_every_key_that_a_run_can_override(tmp_path):
    write_app(tmp_path, to_run_config(Config()))
    made = (tmp_path / "pyproject.toml").read_text()
    assert (ROOT / "flower-app/pyproject.toml").read_text() == made, (
        "stale: run python docs/make_reference.py"
    )
    declared = tomllib.loads(made)["tool"]["flwr"]["app"]["config"]
    flat = {f"{s}.{k}" for s, keys in declared.items() if isinstance(keys, dict) for k in keys}
    assert flat | {"seed", "clients"} == set(key_names())
    assert {"out", "experiment", "resume", "seed", "clients"} <= declared.keys()


def test_flower_builds_the_app(tmp_path):
    """The name of the folder is part of what Flower checks."""
    shutil.copytree(ROOT / "flower-app", tmp_path / "flower-app")
    done = subprocess.run(
        [Path(sys.executable).with_name("flwr"), "build", "--app", "flower-app"],
        cwd=tmp_path,
        env={**os.environ, "FLWR_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [bundle] = tmp_path.glob("fedsdr.fedsdr-app.*.fab")
    assert "pyproject.toml" in zipfile.ZipFile(bundle).namelist()


EXAMPLES = sorted((ROOT / "examples").rglob("*.toml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_every_example_loads_and_is_valid_by_the_json_schema(path):
    check_names(load_config(path))
    VALIDATOR.validate(tomllib.loads(path.read_text()))


def test_the_json_schema_is_well_formed_and_accepts_what_a_run_saves(tmp_path):
    Draft202012Validator.check_schema(VALIDATOR.schema)
    save_config(Config(), tmp_path / "config.toml")
    VALIDATOR.validate(tomllib.loads((tmp_path / "config.toml").read_text()))


@pytest.mark.parametrize(
    "text",
    [
        "[train]\nlearning_rate = 1", "[train]\nlr = 0", "[train]\nbatch_size = 1.5", "data = 3",
        "[data]\npartition = 'dirichlett'", "[algorithm]\nb1 = 1", "[compare]\nmethod = ['plain']",
        "[teacher]\nengine = 'gguf'", "[lora]\ntarget_modules = []", "[model]\nname = ''",
    ],
)  # fmt: skip
def test_the_json_schema_refuses_what_the_program_refuses(text, tmp_path):
    assert not VALIDATOR.is_valid(tomllib.loads(text))
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(UserError):
        check_names(load_config(tmp_path / "c.toml"))


def test_an_entry_that_is_added_to_a_registry_is_a_choice_everywhere(monkeypatch, tmp_path):
    monkeypatch.setitem(PARTITIONERS, "alphabetical", PARTITIONERS["iid"])
    key = config_schema()["properties"]["data"]["properties"]["partition"]
    assert key["enum"][-1] == "alphabetical"
    (tmp_path / "c.toml").write_text("[data]\npartition = 'alphabetical'")
    check_names(load_config(tmp_path / "c.toml"))


@pytest.mark.parametrize("key", REGISTRIES)
def test_an_unknown_name_is_refused_with_the_choices_and_the_nearest(key):
    (name, *_) = REGISTRIES[key]
    config = with_values(Config(), nested(key, f"{name}s"), "there", Path())
    with pytest.raises(UserError, match=f"^{key}: .*{name}.*did you mean '{name}'"):
        check_names(config)


def test_every_file_that_the_readme_names_is_there():
    text = (ROOT / "README.md").read_text()
    named = re.findall(r"\((docs/[\w./-]+)\)|^(src/[\w./]+)", text, re.M)
    paths = [first or second for first, second in named]
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []
