"""What only some users need is an extra, and its absence is one line with the command."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from fedsdr.errors import UserError
from fedsdr.models.gguf_header import stored_in_gguf

ROOT = Path(__file__).parents[1]


def test_every_extra_that_a_message_names_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [path.read_text() for path in (ROOT / "src").rglob("*.py")]
    named = {name for text in texts for name in re.findall(r"install 'fedsdr\[([\w-]+)\]'", text)}
    named |= {
        name for text in texts for name in re.findall(r'import_extra\("[^"]*", "([^"]*)"', text)
    }
    assert named >= {"dp", "gguf", "pandas", "suites"}
    assert named - project["optional-dependencies"].keys() == set()


def test_diagnose_without_scikit_learn_says_what_to_install(fedsdr, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    code, _, err = fedsdr("diagnose", tmp_path)
    assert code == 2
    assert err == (
        "fedsdr: fedsdr diagnose: 'diagnose' needs the package sklearn, which is not installed: "
        "pip install 'fedsdr[diagnose]'\n"
    )


def test_a_gguf_file_without_the_gguf_package_says_what_to_install(monkeypatch, tmp_path):
    from gguf import GGUFWriter
    from numpy import zeros

    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("token_embd.weight", zeros((4, 4), dtype="float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"model\.name: .*pip install 'fedsdr\[gguf\]'"):
        stored_in_gguf(tmp_path / "model.gguf")
