"""fedsdr report: one page of runs."""

from pathlib import Path

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="The file; RUN/report.html if not given."
)
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Put runs and comparisons on one HTML page, with curves and tables.

    The page needs no network and holds no text of any client. Of several runs it goes into the
    folder of the first.
    """
    from fedsdr.files import write_atomically
    from fedsdr.report.page import page_of

    page = page_of(runs)
    path = out or runs[0] / "report.html"
    write_atomically(path, page)
    print(f"{path}: {len(runs)} {'run' if len(runs) == 1 else 'runs'}, {len(page) / 1e3:,.0f} kB")
