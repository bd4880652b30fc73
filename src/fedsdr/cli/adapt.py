"""fedsdr adapt: a private branch for a client that took no part in a run."""

import json
from pathlib import Path

import click

from fedsdr.cli.options import count_option, overrides, run_folder


@click.command()
@run_folder
@click.argument("data")
@overrides
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--client", default="", help="A client of DATA, if it is a folder or a set.")
@click.option("--epochs", type=click.IntRange(min=1), help="Default: train.local_epochs of RUN.")
@count_option("--points", 8, "Points of the learning curve after its start.")
def adapt(
    run: Path,
    data: str,
    set_: tuple[str, ...],
    out: Path,
    client: str,
    epochs: int | None,
    points: int,
) -> None:
    """Give the client of DATA a private branch beside the R of RUN: S alone is trained.

    Writes the loss on its test rows by training rows seen, against the same branch on the bare
    base (adapt.json), and the branch (adapter/). RUN is not changed. DATA is a file, a folder, or
    hub:ORG/NAME, split as the data of RUN.
    """
    from fedsdr.cli.progress import console_progress
    from fedsdr.cli.table import print_tables
    from fedsdr.files import write_atomically
    from fedsdr.runs.adapt import adapt_run, adapt_tables

    found = adapt_run(
        run,
        data,
        out,
        console_progress(),
        client_id=client,
        epochs=epochs or 0,
        points=points,
        overrides=set_,
    )
    write_atomically(out / "adapt.json", json.dumps(found, indent=2, allow_nan=False) + "\n")
    print_tables(adapt_tables(found))
    print(f"\nin {out}: adapt.json, adapter/")
    print(f"next: PeftModel.from_pretrained(base, {str(out / 'adapter')!r}) (in Python)")
