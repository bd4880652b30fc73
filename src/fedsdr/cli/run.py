"""fedsdr run: the whole job."""

from pathlib import Path

import click

from fedsdr.cli.options import config_file, folder_of, out_folder, overrides


@click.command()
@config_file
@overrides
@out_folder
@click.option("--resume", is_flag=True, help="Go on with a stopped run.")
def run(config: Path, set_: tuple[str, ...], out: Path | None, resume: bool) -> None:
    """Run everything: rewrite (if the method needs it), train in rounds, evaluate."""
    from fedsdr.cli.progress import console_progress
    from fedsdr.cli.table import print_results
    from fedsdr.config import load_config
    from fedsdr.engines.experiment import run_experiment
    from fedsdr.files import write_atomically
    from fedsdr.report.page import page_of

    folder = folder_of(config, out)
    settings = load_config(config, set_)
    results = run_experiment(settings, folder, console_progress(), resume=resume)
    write_atomically(folder / "report.html", page_of([folder]))
    print_results(results)
    print(f"\nresults in {folder}: report.html, results.json, rounds.jsonl, global/, clients/")
