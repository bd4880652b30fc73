"""fedsdr run: rewrite, train in rounds, evaluate."""

from pathlib import Path
from typing import get_args

import click

from fedsdr.cli.options import config_file, folder_of, load_checked, out_folder, overrides
from fedsdr.config_keys import EngineName


@click.command()
@config_file
@overrides
@out_folder
@click.option("--resume", is_flag=True, help="Continue a stopped run.")
@click.option("--engine", type=click.Choice(get_args(EngineName)), help="As engine.name.")
@click.option(
    "--federation",
    metavar="NAME",
    help="Run on this SuperLink of Flower's configuration, with the sites connected to it.",
)
def run(
    config: Path,
    set_: tuple[str, ...],
    out: Path | None,
    resume: bool,
    engine: str | None,
    federation: str | None,
) -> None:
    """Run everything: rewrite (if the method needs it), train in rounds, evaluate."""
    from fedsdr.cli.progress import console_progress
    from fedsdr.cli.report import page_of
    from fedsdr.cli.table import print_results
    from fedsdr.errors import UserError
    from fedsdr.files import write_atomically
    from fedsdr.runs.run import run_experiment, run_rounds

    folder = folder_of(config, out)
    settings = load_checked(config, (*set_, *([f"engine.name={engine}"] if engine else [])))
    progress, rounds = console_progress(), run_rounds
    if settings.engine.name == "flower":
        from fedsdr.flower import check_installed
        from fedsdr.flower.launch import simulate, submit

        check_installed()
        rounds = simulate
    if federation and rounds is run_rounds:
        raise UserError("--federation: needs --engine flower")
    if federation:
        submit(settings, folder, federation, resume, progress)
        print(f"results in {folder.resolve()} where the ServerApp runs: rounds.jsonl, global/")
        return
    results = run_experiment(settings, folder, progress, resume=resume, rounds=rounds)
    write_atomically(folder / "report.html", page_of([folder]))
    print_results(results)
    print(f"\nresults in {folder}: report.html, results.json, rounds.jsonl, global/, clients/")
