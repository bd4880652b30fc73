"""fedsdr evaluate: measure the models of a finished or stopped run again, or on public suites."""

import logging
import os
from pathlib import Path

import click

from fedsdr.cli.options import command_line, json_option, overrides, run_folder
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
@click.option(
    "--allow-code-execution",
    "code",
    flag_value="sandboxed",
    help="Run the code of humaneval, in bubblewrap.",
)
@click.option(
    "--unsafe-code", "code", flag_value="unsafe", help="Run it without a sandbox where that fails."
)
@click.option(
    "--nli", default="", metavar="MODEL", help="Model for contradictions of the gold answers."
)
@json_option
def evaluate(
    run: Path,
    set_: tuple[str, ...],
    suite: str | None,
    limit: int | None,
    suite_data: Path | None,
    code: str | None,
    nli: str,
    as_json: bool,
) -> None:
    """Measure base, global and every client on their test rows, and write results.json; with
    --suite, on public benchmarks, and write suites.json."""
    if suite is not None and nli:
        raise UserError("--nli: judges the answers to the test rows; leave --suite out")
    if suite is not None:
        _on_suites(run, set_, suite, limit or 0, suite_data, code, as_json)
        return
    if limit or suite_data or code:
        raise UserError("--limit, --suite-data, --allow-code-execution, --unsafe-code need --suite")
    from fedsdr.cli.progress import console_progress
    from fedsdr.cli.table import print_next, print_results
    from fedsdr.data.clients import load_clients
    from fedsdr.evaluation.results_file import write_results
    from fedsdr.files import alone
    from fedsdr.models.nli import load_nli
    from fedsdr.models.packing import device_of
    from fedsdr.runs.evaluation import evaluate_clients
    from fedsdr.runs.run_folder import check_data, open_run

    runtime, state = open_run(run, set_)
    clients = load_clients(runtime.config.data)
    check_data(run, clients)
    infer = load_nli(nli, device_of(runtime.base.model)) if nli else None
    with alone(run):
        results = evaluate_clients(runtime, clients, state, console_progress(), infer)
        write_results(run, results)
    print_results(results, as_json=as_json)
    if not as_json:
        print_next(the_page_of_the_run=command_line("report", run))


def _on_suites(
    run: Path,
    set_: tuple[str, ...],
    names: str,
    limit: int,
    folder: Path | None,
    code: str | None,
    as_json: bool,
) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")  # the harness's bars; read when tqdm is loaded
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from fedsdr.extras import is_installed
    from fedsdr.research.suites.catalogue import choose_suites

    # Check the whole command before a model is loaded.
    suites = choose_suites(names.lower(), code is not None)
    if not is_installed("lm_eval"):
        raise UserError("--suite: needs lm-evaluation-harness: pip install 'fedsdr[suites]'")

    from fedsdr.cli.progress import console_progress
    from fedsdr.cli.table import print_json, print_next, print_tables
    from fedsdr.research.suites.harness import load_tasks, run_suites
    from fedsdr.research.suites.tables import tables_of
    from fedsdr.runs.run_folder import open_run

    loaded = {n: (s, load_tasks(n, s, folder, code == "unsafe")) for n, s in suites.items()}
    runtime, state = open_run(run, set_)
    source = "local files" if folder else "the hub"
    results = run_suites(runtime, state, loaded, source, limit, console_progress())
    if as_json:
        print_json(results)
        return
    print_tables(tables_of(results).items())
    print_next(the_page_of_the_run=command_line("report", run))
