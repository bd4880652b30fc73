"""Arguments that several commands share."""

from pathlib import Path

import click

config_file = click.argument("config", type=click.Path(path_type=Path))
run_folder = click.argument("run", type=click.Path(path_type=Path))
overrides = click.option(
    "--set", "set_", multiple=True, metavar="KEY=VALUE", help="Override a key: train.lr=1e-4."
)
out_folder = click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Where the run goes; runs/NAME for a configuration called NAME.toml if not given.",
)


def folder_of(config: Path, out: Path | None) -> Path:
    """Return `out`, or runs/NAME for a configuration called NAME.toml."""
    return out or Path("runs") / config.stem
