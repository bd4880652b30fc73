import re
import sys
import tomllib
from pathlib import Path

import pytest

from fedsdr.config import Config, key_names, load_config
from fedsdr.flower.app_folder import write_app
from fedsdr.flower.run_config import to_run_config

ROOT = Path(__file__).parents[1]


def test_the_reference_is_that_of_the_program():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from make_reference import reference
    finally:
        sys.path.pop(0)
    assert (ROOT / "docs" / "reference.md").read_text() == reference(), (
        "stale: run python docs/make_reference.py"
    )


def test_the_flower_app_declares_every_key_that_a_run_can_override(tmp_path):
    write_app(tmp_path, to_run_config(Config()))
    made = (tmp_path / "pyproject.toml").read_text()
    assert (ROOT / "flower_app/pyproject.toml").read_text() == made, (
        "stale: run python docs/make_reference.py"
    )
    declared = tomllib.loads(made)["tool"]["flwr"]["app"]["config"]
    flat = {f"{s}.{k}" for s, keys in declared.items() if isinstance(keys, dict) for k in keys}
    assert flat | {"seed"} == set(key_names())
    assert {"out", "experiment", "resume", "seed"} <= declared.keys()


EXAMPLES = sorted((ROOT / "examples").rglob("*.toml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_every_example_loads(path):
    assert load_config(path).federation.rounds >= 1


def test_every_file_that_the_readme_names_is_there():
    text = (ROOT / "README.md").read_text()
    named = re.findall(r"\((docs/[\w./-]+)\)|^(src/[\w./]+)", text, re.M)
    paths = [first or second for first, second in named]
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []
