"""fedsdr diagnose: alignment of the clients and the Rewrite Paradox, in numbers."""

from pathlib import Path

import click

from fedsdr.cli.options import command_line, count_option, json_option, overrides, run_folder


@click.command()
@run_folder
@overrides
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where diagnose.json goes; default: RUN."
)
@click.option(
    "--only",
    multiple=True,
    metavar="PART",
    help="text, rewrites, optimization, serving or aggregation; default: the quick ones.",
)
@click.option("--full", is_flag=True, help="All parts, which takes much longer.")
@click.option(
    "--rows",
    type=click.IntRange(min=2),
    help="Rows of a client that the model reads, at most. [default: 16; with --full or --only 32]",
)
@count_option("--steps", 8, "Optimizer steps before a loss transfer.")
@click.option(
    "--nli", default="", metavar="MODEL", help="Hugging Face model for entailment; none is bundled."
)
@json_option
def diagnose(
    run: Path,
    set_: tuple[str, ...],
    out: Path | None,
    only: tuple[str, ...],
    full: bool,
    rows: int | None,
    steps: int,
    nli: str,
    as_json: bool,
) -> None:
    """Measure how aligned the clients are and what rewriting cost, raw against rewritten.

    The run is not changed. docs/diagnose.md explains each number.
    """
    from fedsdr.cli.progress import console_progress
    from fedsdr.cli.table import print_next, write_and_print
    from fedsdr.data.clients import load_clients, taking_part
    from fedsdr.extras import import_extra

    import_extra("sklearn", "diagnose", "fedsdr diagnose")
    from fedsdr.research.diagnose.diagnose_run import QUICK_PARTS
    from fedsdr.research.diagnose.diagnose_run import diagnose as measure
    from fedsdr.research.diagnose.summary import tables_of
    from fedsdr.runs.run_folder import check_data, open_run

    runtime, state = open_run(run, set_)
    clients = load_clients(runtime.config.data)
    check_data(run, clients)
    clients = taking_part(clients, runtime.config.data)
    quick = not (full or only)
    rows = rows or (16 if quick else 32)
    found = measure(
        runtime,
        state,
        clients,
        console_progress(),
        only=QUICK_PARTS if quick else only,
        rows=rows,
        steps=steps,
        nli=nli,
    )
    title = f"Diagnosis: {found['method']} with {found['algorithm']}, {found['rounds']} rounds"
    write_and_print(out or run, "diagnose", found, title, tables_of(found), as_json=as_json)
    if not as_json and quick:
        print_next(all_parts=command_line("diagnose", run, "--full"))
    elif not as_json:
        print_next(the_page_of_the_run=command_line("report", run))
