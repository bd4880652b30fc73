"""fedsdr evaluate: measure the models of a finished or stopped run again."""

import json
from pathlib import Path

import click

from fedsdr.cli.options import overrides, run_folder


@click.command()
@run_folder
@overrides
def evaluate(run: Path, set_: tuple[str, ...]) -> None:
    """Measure base, global and every client on their test rows, and write results.json."""
    from fedsdr.cli.progress import console_progress
    from fedsdr.cli.table import print_results
    from fedsdr.engines.evaluating import evaluate_clients
    from fedsdr.engines.experiment import clients_of
    from fedsdr.engines.run_folder import check_data, open_run
    from fedsdr.files import write_atomically

    site, state = open_run(run, set_)
    clients = clients_of(site.config)
    check_data(run, clients)
    results = evaluate_clients(site, clients, state, console_progress())
    write_atomically(run / "results.json", json.dumps(results, indent=2) + "\n")
    print_results(results)
