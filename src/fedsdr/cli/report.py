"""fedsdr report: runs and comparisons on one page."""

from collections.abc import Sequence
from pathlib import Path

import click


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
    from fedsdr.files import read_json
    from fedsdr.report.page import render_page
    from fedsdr.report.run_section import HINT, run_section, side_by_side
    from fedsdr.research.diagnose.summary import tables_of

    sections, runs = [], []
    for folder in folders:
        if (folder / "compare.json").is_file():
            from fedsdr.research.compare.comparison_table import section_of  # imports scipy

            sections.append(
                section_of(folder.resolve().name, read_json(folder / "compare.json", HINT))
            )
        else:
            diagnosis = folder / "diagnose.json"
            found = tables_of(read_json(diagnosis, HINT)) if diagnosis.is_file() else []
            more = [(f"{title}. {meaning}", rows) for title, meaning, rows in found]
            sections.append(run_section(folder, more))
            runs.append(folder)
    if len(runs) > 1:
        sections.insert(0, side_by_side(runs))
    return render_page(", ".join(folder.resolve().name for folder in folders), sections)
