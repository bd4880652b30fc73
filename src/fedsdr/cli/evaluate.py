"""fedsdr evaluate: measure the models of a finished or stopped run again, or on public suites."""

import json
import os
from pathlib import Path

import click

from fedsdr.cli.options import overrides, run_folder
from fedsdr.errors import UserError


@click.command()
@run_folder
@overrides
@click.option("--suite", metavar="NAMES", help="Public suites instead of the test rows: mmlu,bbh.")
@click.option(
    "--limit", type=click.IntRange(min=1), help="Questions of each suite; all if not given."
)
@click.option(
    "--suite-data",
    type=click.Path(path_type=Path),
    help="Folder of the test sets (docs/suites.md); the hub if not given.",
)
@click.option("--allow-code-execution", is_flag=True, help="Run the code that humaneval asks for.")
def evaluate(
    run: Path,
    set_: tuple[str, ...],
    suite: str | None,
    limit: int | None,
    suite_data: Path | None,
    allow_code_execution: bool,
) -> None:
    """Measure base, global and every client on their test rows, and write results.json; with
    --suite, on public benchmarks, and write suites.json."""
    if suite is not None:
        _on_suites(run, set_, suite, limit, suite_data, allow_code_execution)
        return
    if limit or suite_data or allow_code_execution:
        raise UserError("--limit, --suite-data and --allow-code-execution are of --suite; add it")
    from fedsdr.cli.progress import console_progress
    from fedsdr.cli.table import print_results
    from fedsdr.data.clients import load_clients
    from fedsdr.files import write_atomically
    from fedsdr.runs.evaluation import evaluate_clients
    from fedsdr.runs.run_folder import check_data, open_run

    site, state = open_run(run, set_)
    clients = load_clients(site.config.data)
    check_data(run, clients)
    results = evaluate_clients(site, clients, state, console_progress())
    write_atomically(run / "results.json", json.dumps(results, indent=2) + "\n")
    print_results(results)


def _on_suites(
    run: Path,
    set_: tuple[str, ...],
    names: str,
    limit: int | None,
    folder: Path | None,
    allow_code_execution: bool,
) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")  # the harness's own bars; read when tqdm is loaded
    from fedsdr.extras import is_installed
    from fedsdr.research.suites.catalogue import chosen_suites, read_suites

    # All that can be wrong with what was typed is found before a model is loaded.
    suites = chosen_suites(names.lower(), allow_code_execution)
    questions = read_suites(suites, folder)
    if not is_installed("lm_eval"):
        raise UserError("--suite: needs lm-evaluation-harness: pip install -e '.[suites]'")

    from fedsdr.cli.progress import console_progress
    from fedsdr.cli.table import print_tables
    from fedsdr.research.suites.run_suites import run_suites
    from fedsdr.research.suites.tables import tables_of
    from fedsdr.runs.run_folder import open_run

    site, state = open_run(run, set_)
    results = run_suites(site, state, suites, questions, limit or 0, console_progress())
    print_tables(tables_of(results).items())
