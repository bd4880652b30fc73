"""fedsdr report: runs and comparisons on one page."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

T = TypeVar("T")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The file; default: RUN/report.html.")
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Put runs and comparisons on one HTML page, with curves and tables.

    The page needs no network and holds no text of any client. The page of several runs goes into
    the folder of the first.
    """
    from fedsdr.files import write_atomically

    page = page_of(runs)
    path = out or runs[0] / "report.html"
    write_atomically(path, page)
    print(f"{path}: {len(runs)} {'run' if len(runs) == 1 else 'runs'}, {len(page) / 1e3:,.0f} kB")


def page_of(folders: Sequence[Path]) -> str:
    """Return the page of run and comparison folders; UserError if one holds neither."""
    from fedsdr.file_reading import stands
    from fedsdr.report.page import render_page
    from fedsdr.report.run_section import run_section, side_by_side
    from fedsdr.research.diagnose.summary import tables_of

    sections, runs = [], []
    for folder in folders:
        if stands(folder / "compare.json"):
            from fedsdr.research.compare.comparison_table import section_of  # imports scipy

            to_section = functools.partial(section_of, folder.resolve().name)
            sections.append(_read_as(to_section, folder / "compare.json"))
        else:
            diagnosis = folder / "diagnose.json"
            found = _read_as(tables_of, diagnosis) if stands(diagnosis) else []
            more = [(f"{title}. {meaning}", rows) for title, meaning, rows in found]
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
