"""Arguments that several commands share, and the configuration that they name."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from fedsdr.config import Config

config_file = click.argument("config", type=click.Path(path_type=Path))
run_folder = click.argument("run", type=click.Path(path_type=Path))
overrides = click.option(
    "--set", "set_", multiple=True, metavar="KEY=VALUE", help="Override a key: train.lr=1e-4."
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print what the tables show as JSON."
)
out_folder = click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the run; default: runs/NAME for a configuration NAME.toml.",
)


def count_option(name: str, default: int, meaning: str, least: int = 1) -> Any:
    """Return the decorator of an option that takes a whole number of at least `least`."""
    kind = click.IntRange(min=least)
    return click.option(name, type=kind, default=default, show_default=True, help=meaning)


def command_line(*parts: object) -> str:
    """Return `fedsdr PARTS` as a shell reads it, without the password of an endpoint's address."""
    from fedsdr.config import without_password

    key = "teacher.url="
    shown = [
        key + without_password(part.removeprefix(key)) if part.startswith(key) else part
        for part in map(str, parts)
    ]
    return shlex.join(["fedsdr", *shown])


def set_options(overrides: tuple[str, ...]) -> list[str]:
    """Return the options that repeat these overrides."""
    return [part for override in overrides for part in ("--set", override)]


def folder_of(config: Path, out: Path | None) -> Path:
    """Return `out`, or runs/NAME for a configuration NAME.toml."""
    return out or Path("runs") / config.stem


def load_checked(path: Path, overrides: tuple[str, ...]) -> "Config":
    """Load a configuration and check its names before anything slow happens."""
    from fedsdr.config import load_config

    config = load_config(path, overrides)
    from fedsdr.runs.config_schema import check_names  # imports torch, so last

    check_names(config)
    return config
