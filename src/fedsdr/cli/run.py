"""fedsdr run: rewrite, train in rounds, evaluate."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from fedsdr.cli.options import (
    command_line,
    config_file,
    folder_of,
    json_option,
    load_checked,
    out_folder,
    overrides,
)
from fedsdr.config_keys import EngineName

if TYPE_CHECKING:
    from fedsdr.config import Config
    from fedsdr.progress import Progress
    from fedsdr.runs.run import RunRounds


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
@json_option
def run(
    config: Path,
    set_: tuple[str, ...],
    out: Path | None,
    resume: bool,
    engine: str | None,
    federation: str | None,
    as_json: bool,
) -> None:
    """Run everything: rewrite (if the method needs it), train in rounds, evaluate."""
    from fedsdr.cli.progress import console_progress
    from fedsdr.cli.report import page_of
    from fedsdr.cli.table import print_json, print_next, print_results
    from fedsdr.config import load_config
    from fedsdr.files import write_atomically
    from fedsdr.runs.run_folder import NOTHING_TO_DO, finished_run

    folder, progress = folder_of(config, out), console_progress()
    set_ = (*set_, *([f"engine.name={engine}"] if engine else []))
    results = None
    if resume and not federation:  # before anything that imports torch
        results = finished_run(load_config(config, set_), folder)
    if results:
        progress.log(f"{folder}: {NOTHING_TO_DO}")
    else:
        results = _run(load_checked(config, set_), folder, resume, federation, progress)
    if not results:
        if as_json:
            print_json({"submitted_to": federation, "folder_there": str(folder.resolve())})
        else:
            there = folder.resolve()
            print(f"results in {there} where the ServerApp runs: rounds.jsonl, global/")
            print_next(there=command_line("watch", there))
        return
    write_atomically(folder / "report.html", page_of([folder]))
    print_results(results, as_json=as_json)
    if not as_json:
        print(f"\nresults in {folder}: report.html, results.json, rounds.jsonl, global/, clients/")
        chat, why = command_line("chat", folder), command_line("diagnose", folder)
        print_next(talk_to_the_models=chat, what_the_clients_share=why)


def _run(
    settings: "Config", folder: Path, resume: bool, federation: str | None, progress: "Progress"
) -> dict[str, Any] | None:
    """Run with the engine of the configuration; None if the run was handed to a federation."""
    from fedsdr.errors import UserError
    from fedsdr.runs.run import run_experiment

    if federation and settings.engine.name != "flower":
        raise UserError("--federation: needs --engine flower")
    rounds = rounds_of(settings)
    if federation:
        from fedsdr.flower.launch import submit

        submit(settings, folder, federation, resume, progress)
        return None
    return run_experiment(settings, folder, progress, resume=resume, rounds=rounds)


def rounds_of(settings: "Config") -> "RunRounds":
    """Return what runs the rounds: the engine of the configuration. UserError if not installed."""
    if settings.engine.name != "flower":
        from fedsdr.runs.run import run_rounds

        return run_rounds
    from fedsdr.flower import check_installed

    check_installed()
    from fedsdr.flower.launch import simulate

    return simulate
