"""fedsdr init: a commented configuration, its JSON schema and a folder for data."""

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

HEAD = """#:schema ./fedsdr.schema.json
# A federated run. fedsdr.schema.json has all keys; a key that is left out has its default.
"""
NO_KEYS: Mapping[str, Any] = {}
# The keys that most users change; those after "#" are written as comments.
KEYS = (
    "seed", "model.name", "model.dtype", "data.clients", "#data.source", "#data.partition",
    "#data.alpha", "#data.num_clients", "data.test_fraction", "data.max_examples",
    "data.max_length", "method.name", "#method.s_dropout", "algorithm.name",
    "#algorithm.aggregation", "federation.rounds", "federation.clients_per_round",
    "#federation.update_dtype", "#privacy.mode", "train.local_epochs", "train.batch_size",
    "#train.optimizer", "train.lr", "#train.schedule", "#train.anchor_beta", "lora.rank",
    "lora.alpha", "lora.dropout", "lora.target_modules", "teacher.engine", "teacher.temperature",
    "teacher.max_new_tokens", "teacher.filter", "evaluation.max_new_tokens",
)  # fmt: skip


# What docs/choosing.md recommends, by what is wanted.
PRESETS: dict[str, dict[str, Any]] = {
    "shared": {"method.name": "plain"},
    "personal": {"method.name": "plain-personal"},
    "own-style": {"method.name": "fedsdr"},
    "served-alone": {"method.name": "fedsdr", "method.s_dropout": 0.5},
    "near-base": {"method.name": "fedsd"},
    "private": {"method.name": "plain", "privacy.mode": "central"},
    "robust": {"method.name": "plain", "algorithm.aggregation": "median"},
}
EXAMPLE: dict[str, Any] = {
    "data.test_fraction": 0.25, "federation.rounds": 3, "train.local_epochs": 2,
    "train.batch_size": 8, "teacher.max_new_tokens": 48, "evaluation.max_new_tokens": 32,
}  # fmt: skip


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--example", is_flag=True, help="Add three small clients, and keys that fit them.")
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="Keys for what you want, as docs/choosing.md recommends.",
)
def init(folder: Path, example: bool, preset: str | None) -> None:
    """Create a folder with a commented configuration and a place for data."""
    from fedsdr.cli.example_data import example_files
    from fedsdr.errors import UserError
    from fedsdr.files import disk_errors_named, write_atomically
    from fedsdr.runs.config_schema import config_schema

    target, clients, schema = folder / "fedsdr.toml", folder / "data" / "clients", config_schema()
    files = {clients / name: text for name, text in example_files().items()} if example else {}
    with disk_errors_named(folder):
        for path in (target, *files):
            if path.exists():
                raise UserError(f"{path}: exists already; choose another folder")
        clients.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        write_atomically(path, text)
    chosen = (EXAMPLE if example else {}) | (PRESETS[preset] if preset else {})
    write_atomically(folder / "fedsdr.schema.json", json.dumps(schema, indent=1) + "\n")
    write_atomically(target, commented_config(schema, chosen))
    print(
        f"made {target} and {clients}/{' with ' if files else ''}{', '.join(p.name for p in files)}"
    )
    if not files:
        print("put one file per client there (.jsonl, .json, .csv or .parquet), then:")
    print(f"  fedsdr data {target}")
    print(f"  fedsdr run {target}")


def commented_config(schema: dict[str, Any], chosen: Mapping[str, Any] = NO_KEYS) -> str:
    """Return a TOML file with KEYS at their defaults, each with its meaning from the schema.

    `chosen` are other values, which are written without a "#".
    """
    text, last = HEAD, ""
    for key in KEYS:
        written = key.lstrip("#") if key.lstrip("#") in chosen else key
        section, _, name = written.lstrip("#").rpartition(".")
        keys = schema["properties"][section]["properties"] if section else schema["properties"]
        if section != last:
            text, last = f"{text}\n[{section}]\n", section
        default = "data/clients" if written == "data.clients" else keys[name]["default"]
        default = chosen.get(written, default)
        line = f"{'# ' * written.startswith('#')}{name} = {json.dumps(default)}"  # JSON is TOML
        choices = f" ({' | '.join(keys[name]['enum'])})" if "enum" in keys[name] else ""
        comment = f"# {keys[name]['description']}{choices}"
        beside = f"{line:<31} {comment}"
        above = textwrap.fill(comment, 98, subsequent_indent="#   ")
        text += (beside if len(beside) <= 100 else f"{above}\n{line}") + "\n"
    return text
