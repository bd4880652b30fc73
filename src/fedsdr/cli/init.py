"""fedsdr init: a commented configuration, its JSON schema and a folder for data."""

import json
import textwrap
from pathlib import Path
from typing import Any

import click

HEAD = """#:schema ./fedsdr.schema.json
# A federated run. docs/reference.md has all keys; a key that is left out has its default.
"""
# The keys that most users change; those after "#" are written as comments.
KEYS = (
    "seed", "model.name", "model.dtype", "data.clients", "#data.source", "#data.partition",
    "#data.alpha", "#data.num_clients", "data.test_fraction", "data.max_examples",
    "data.max_length", "method.name", "algorithm.name", "#algorithm.aggregation",
    "federation.rounds", "federation.clients_per_round", "#federation.update_dtype",
    "train.local_epochs", "train.batch_size", "train.lr", "lora.rank", "lora.alpha",
    "lora.dropout", "lora.target_modules", "teacher.engine", "teacher.temperature",
    "teacher.max_new_tokens", "teacher.filter", "evaluation.max_new_tokens",
)  # fmt: skip


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def init(folder: Path) -> None:
    """Create a folder with a commented configuration and a place for data."""
    from fedsdr.errors import UserError
    from fedsdr.files import disk_errors_named, write_atomically
    from fedsdr.runs.config_schema import config_schema

    target, clients, schema = folder / "fedsdr.toml", folder / "data" / "clients", config_schema()
    with disk_errors_named(folder):
        if target.exists():
            raise UserError(f"{target}: exists already; choose another folder")
        clients.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "fedsdr.schema.json", json.dumps(schema, indent=1) + "\n")
    write_atomically(target, commented_config(schema))
    print(f"made {target} and {clients}/")
    print("put one file per client there (.jsonl, .json, .csv or .parquet), then:")
    print(f"  fedsdr data {target}")
    print(f"  fedsdr run {target}")


def commented_config(schema: dict[str, Any]) -> str:
    """Return a TOML file with KEYS at their defaults, each with its meaning from the schema."""
    text, last = HEAD, ""
    for written in KEYS:
        section, _, name = written.lstrip("#").rpartition(".")
        keys = schema["properties"][section]["properties"] if section else schema["properties"]
        if section != last:
            text, last = f"{text}\n[{section}]\n", section
        default = "data/clients" if written == "data.clients" else keys[name]["default"]
        line = f"{'# ' * written.startswith('#')}{name} = {json.dumps(default)}"  # JSON is TOML
        choices = f" ({' | '.join(keys[name]['enum'])})" if "enum" in keys[name] else ""
        comment = f"# {keys[name]['description']}{choices}"
        beside = f"{line:<31} {comment}"
        above = textwrap.fill(comment, 98, subsequent_indent="#   ")
        text += (beside if len(beside) <= 100 else f"{above}\n{line}") + "\n"
    return text
