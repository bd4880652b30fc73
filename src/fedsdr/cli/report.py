"""fedsdr report: runs and comparisons on one page."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from fedsdr.cli.options import count_option

T = TypeVar("T")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The file; default: RUN/report.html.")
@click.option(
    "--rewrites",
    is_flag=True,
    help="Instead, show the texts of one run, for the client alone; default: RUN/rewrites.html.",
)
@count_option(
    "--answers", 0, "With --rewrites: let the models answer so many test rows a client.", least=0
)
def report(runs: tuple[Path, ...], out: Path | None, rewrites: bool, answers: int) -> None:
    """Put runs and comparisons on one HTML page, with charts and tables.

    The page needs no network and holds no text of any client; a run need not be finished. The page
    of several runs goes into the folder of the first. With --rewrites the page holds the raw
    answers, their rewrites and the models' answers that are kept, and its mode is 0600.
    """
    from fedsdr.files import write_atomically

    if rewrites:
        if len(runs) > 1:
            raise click.UsageError("--rewrites shows one run")
        page, path = texts_of(runs[0], answers), out or runs[0] / "rewrites.html"
        what = "text of its clients, for the client alone"
    else:
        if answers:
            raise click.UsageError("--answers needs --rewrites")
        page, path = page_of(runs), out or runs[0] / "report.html"
        what = f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}"
    write_atomically(path, page, private=rewrites)
    print(f"{path}: {what}, {len(page.encode()) / 1e3:,.0f} kB")
    print("next: open it in a browser")


def texts_of(run: Path, answers: int = 0) -> str:
    """Return the page of a run's texts, with answers to `answers` test rows a client made first."""
    from fedsdr.report.rewrites_page import rewrites_page
    from fedsdr.research.diagnose.rewrite_signs import signs_seen

    if answers:
        from fedsdr.cli.progress import console_progress
        from fedsdr.data.clients import load_clients
        from fedsdr.runs.answers import answers_of
        from fedsdr.runs.run_folder import read_run

        clients, progress = load_clients(read_run(run)[0].data), console_progress()
        rows = {client.client_id: client.test[:answers] for client in clients}
        for model in ("base", "global", "client"):
            answers_of(run, model, clients, rows, progress)
    return rewrites_page(run, signs_seen)


def page_of(folders: Sequence[Path]) -> str:
    """Return the page of run and comparison folders; UserError if one holds neither."""
    from fedsdr.file_reading import stands
    from fedsdr.report.page import render_page
    from fedsdr.report.run_section import run_section, side_by_side
    from fedsdr.research.diagnose.diagnosis_charts import groups_of

    sections, runs = [], []
    for folder in folders:
        if stands(folder / "compare.json"):
            from fedsdr.research.compare.comparison_charts import section_of  # imports scipy

            to_section = functools.partial(section_of, folder.resolve().name)
            sections.append(_read_as(to_section, folder / "compare.json"))
        else:
            diagnosis = folder / "diagnose.json"
            more = _read_as(groups_of, diagnosis) if stands(diagnosis) else []
            sections.append(run_section(folder, more))
            runs.append(folder)
    if len(runs) > 1:
        sections.insert(0, side_by_side(runs))
    return render_page(", ".join(folder.resolve().name for folder in folders), sections)


def _read_as(convert: Callable[[dict[str, Any]], T], path: Path) -> T:
    """Return what `convert` makes of the object in a JSON file; UserError where it cannot."""
    from fedsdr.errors import UserError
    from fedsdr.file_reading import read_json

    fix = "make it again with the command that wrote it"
    found = read_json(path, dict[str, Any], fix)
    try:
        return convert(found)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: damaged ({what}); {fix}") from error
