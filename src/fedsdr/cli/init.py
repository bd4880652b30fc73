"""fedsdr init: a commented configuration and a folder for data."""

from importlib import resources
from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def init(folder: Path) -> None:
    """Make a folder with a commented configuration and a place for data."""
    from fedsdr.errors import UserError
    from fedsdr.files import disk_errors_named, write_atomically

    target = folder / "fedsdr.toml"
    if target.exists():
        raise UserError(f"{target}: exists already; choose another folder")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; choose another folder")
    template = resources.files("fedsdr.cli").joinpath("template.toml").read_text("utf-8")
    with disk_errors_named(folder):
        (folder / "data" / "clients").mkdir(parents=True, exist_ok=True)
    write_atomically(target, template)
    print(f"made {target} and {folder / 'data' / 'clients'}/")
    print("put one file a client there (.jsonl, .json, .csv or .parquet), then:")
    print(f"  fedsdr data {target}")
    print(f"  fedsdr run {target}")
