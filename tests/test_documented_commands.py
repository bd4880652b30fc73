"""The commands of README.md and docs/: each parses, and those of the first steps run."""

import itertools
import re
import shlex
from pathlib import Path

import click
import pytest

from fedsdr.cli.main import cli
from fedsdr.config import load_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^ *```.*?\n(.*?)^ *```", re.M | re.S)
INDENTED = re.compile(r"(?:^ {4}\S.*\n)+", re.M)
INLINE = re.compile(r"`(fedsdr [a-z][^`]*)`")
COMMAND = re.compile(r"(?:^|[;(] *|do |\$ )(?:\.venv/bin/)?(fedsdr [a-z].*)")


def block_commands(page: Path) -> list[list[str]]:
    """Return the arguments of every `fedsdr` command in the code blocks of a page."""
    text = page.read_text()
    blocks = [*FENCE.findall(text), *INDENTED.findall(FENCE.sub("", text))]
    found = []
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            if match := COMMAND.search(line.strip()):
                command = match[1].split(";")[0]
                found.append(shlex.split(command, comments=True)[1:])
    return found


def inline_commands(page: Path) -> list[list[str]]:
    """Return those in running text, which may be a name alone or have [optional] parts."""
    return [
        shlex.split(re.sub(r"[\[\]]|\.\.\.", "", command))[1:]
        for command in INLINE.findall(FENCE.sub("", page.read_text()))
    ]


def leaf_command(words: list[str]) -> tuple[click.Command, click.Context, list[str]]:
    """Follow the groups to a command; return it, its context and the arguments left over."""
    command, context = cli, click.Context(cli, info_name="fedsdr")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, *words = words
        found = command.get_command(context, name)
        assert found, f"no such command: {name}"
        command, context = found, click.Context(found, parent=context, info_name=name)
    return command, context, words


def overrides_of(words: list[str]) -> list[str]:
    """Return the values of --set, without those that a shell variable fills in."""
    values = [value for flag, value in itertools.pairwise(words) if flag == "--set"]
    return [value for value in values if "$" not in value]


CASES = [(page, words) for page in PAGES for words in block_commands(page)]
NAMED = [(page, words) for page in PAGES for words in inline_commands(page)]


def test_the_pages_have_commands():
    assert len(CASES) > 15
    assert len(NAMED) > 15
    assert {words[0] for _, words in CASES} >= {"init", "data", "distill", "run", "compare"}


@pytest.mark.parametrize(
    ("page", "words"), CASES, ids=[f"{page.stem}: {' '.join(words)}" for page, words in CASES]
)
def test_a_command_of_a_code_block_has_valid_arguments(page, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for placeholder in ("FOLDER", "DIR"):  # some options want a folder that exists
        Path(placeholder).mkdir()
    command, context, rest = leaf_command(words)
    command.make_context(context.info_name, rest)  # raises for an unknown or missing argument
    (tmp_path / "empty.toml").write_text("")
    load_config(tmp_path / "empty.toml", overrides_of(words))


@pytest.mark.parametrize(
    ("page", "words"), NAMED, ids=[f"{page.stem}: {' '.join(words)}" for page, words in NAMED]
)
def test_a_command_named_in_the_text_has_valid_options(page, words):
    command, _, rest = leaf_command(words)
    known = {flag for parameter in command.params for flag in parameter.opts} | {"--help"}
    options = {word.split("=")[0] for word in rest if word.startswith("-")}
    assert options <= known


def test_the_first_steps_of_the_readme_run_in_their_order(
    tmp_path, fedsdr, write_config, data_folder, monkeypatch
):
    write_config()
    monkeypatch.chdir(tmp_path)
    steps = [words for words in block_commands(ROOT / "README.md") if "study" in " ".join(words)]
    steps = [words for words in steps if words[0] in ("init", "data", "distill", "run")]
    assert [words[0] for words in steps] == ["init", "data", "distill", "run", "run"]
    for words in steps:
        code, out, err = fedsdr(*words)
        assert code == 0, (words, err)
        if words[0] == "init":  # the reader's own model and rows
            small = (tmp_path / "config.toml").read_text()
            Path("study/fedsdr.toml").write_text(small.replace(str(data_folder), "data/clients"))
            for file in data_folder.iterdir():
                Path("study/data/clients", file.name).write_bytes(file.read_bytes())
    assert Path("runs/fedsdr/results.json").exists()
    assert "runs/fedsdr" in out
    for words in (
        ("report", "runs/fedsdr"),
        ("export", "runs/fedsdr", "--out", "adapter", "--client", "bank"),
        ("export", "runs/fedsdr", "--out", "weights", "--client", "bank", "--merge"),
    ):
        code, _, err = fedsdr(*words)
        assert code == 0, (words, err)
