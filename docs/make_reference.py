"""Write docs/reference.md from the program itself: `python docs/make_reference.py`."""

import dataclasses
import inspect
import re
from pathlib import Path

import click

from fedsdr import config
from fedsdr.cli.main import cli
from fedsdr.flower.app_folder import write_app
from fedsdr.flower.run_config import to_run_config

HEAD = """# Commands and keys

Made by `python docs/make_reference.py`; a test fails when it is stale.

Exit codes: 0 done; 2 what you can fix, said in one line; 130 stopped by you, with the state saved;
1 a fault of ours.
"""


def commands() -> str:
    parts = ["\n## Commands\n"]
    for name, command in leaves("fedsdr", cli):
        context = click.Context(command, info_name=name, **cli.context_settings)
        parts.append(f"\n```\n{command.get_help(context)}\n```\n")
    return "".join(parts)


def leaves(name: str, command: click.Command) -> list[tuple[str, click.Command]]:
    """Return the commands that do something, those of groups too, by their whole names."""
    if not isinstance(command, click.Group):
        return [(name, command)]
    below = sorted(command.commands.items())
    return [leaf for part, inner in below for leaf in leaves(f"{name} {part}", inner)]


def keys() -> str:
    parts = ["\n## Keys of the configuration\n\n`--set section.key=value` sets any of them.\n"]
    parts.append("\n`seed = 0` stands before the sections.\n")
    sections = {f.name: f.type for f in dataclasses.fields(config.Config)}
    for section, kind in [*sections.items(), ("compare", config.CompareConfig)]:
        if not dataclasses.is_dataclass(kind):
            continue
        parts.append(f"\n### [{section}]\n\n| key | default | |\n|---|---|---|\n")
        comments = dict(re.findall(r"^    (\w+): .*?(?:  # (.*))?$", inspect.getsource(kind), re.M))
        default = kind()
        for field in dataclasses.fields(default):
            value = getattr(default, field.name)
            shown = "unset" if value is None else repr(value)
            choices = (
                re.findall(r"'([\w-]+)'", str(field.type)) if "Literal" in str(field.type) else ()
            )
            note = "; ".join(part for part in (" \\| ".join(choices), comments[field.name]) if part)
            note = re.sub(r"(?<!\\)\|", r"\\|", note)
            parts.append(f"| `{field.name}` | `{shown}` | {note} |\n")
    return "".join(parts)


def reference() -> str:
    """Return the whole page."""
    return HEAD + commands() + keys()


if __name__ == "__main__":
    here = Path(__file__).parent
    (here / "reference.md").write_text(reference(), encoding="utf-8")
    write_app(here.parent / "flower_app", to_run_config(config.Config()))
