"""fedsdr compare: methods x algorithms x seeds, with intervals and cost."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedsdr.cli.options import (
    command_line,
    config_file,
    folder_of,
    json_option,
    out_folder,
    overrides,
)
from fedsdr.config import Config, load_study, nested, parse_value, value_of, with_values
from fedsdr.errors import UserError

if TYPE_CHECKING:
    from fedsdr.evaluation.results import Table


@click.command()
@config_file
@click.option(
    "--methods", metavar="A,B", help="Methods or variants, instead of those of [compare]."
)
@click.option("--algorithms", metavar="A,B", help="Instead of those of [compare].")
@click.option("--seeds", metavar="0,1,2", help="Instead of those of [compare].")
@click.option("--draws", type=click.IntRange(1, 1000), help="Draws of the data, from data.seed on.")
@click.option("--sweep", multiple=True, metavar="KEY=A,B", help="Any key: data.alpha=0.1,0.5.")
@click.option("--baseline", metavar="NAME", help="Variant to take differences to; default: plain.")
@click.option("--model", metavar="NAME", help="Instead of model.name.")
@click.option(
    "--data",
    type=click.Path(exists=True, path_type=Path),
    help="A file or folder instead of data.source (split alike) or data.clients.",
)
@click.option("--finished", is_flag=True, help="Run nothing: only the table of finished runs.")
@click.option("--dry-run", is_flag=True, help="Estimate the cost, from small runs.")
@overrides
@out_folder
@json_option
def compare(
    config: Path,
    methods: str | None,
    algorithms: str | None,
    seeds: str | None,
    draws: int | None,
    sweep: tuple[str, ...],
    baseline: str | None,
    model: str | None,
    data: Path | None,
    finished: bool,
    dry_run: bool,
    set_: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Run every method with every algorithm, draw and seed, and put them in one table.

    Each is a run in OUT/cells/. A finished run is not run again, and the same command resumes a
    stopped comparison.
    """
    from fedsdr.cli.progress import console_progress
    from fedsdr.research.compare.compare_runs import run_study, write_comparison
    from fedsdr.research.compare.dry_run import estimate_table, estimates_of
    from fedsdr.research.compare.grid import with_given
    from fedsdr.research.compare.tuning import planned_cells

    settings, study = load_study(config, set_)
    settings = with_model_and_data(settings, model, data)
    study = with_given(
        study,
        methods=_names(methods),
        sweep=dict(_swept(settings, text) for text in sweep),
        algorithms=_names(algorithms),
        seeds=_whole_numbers(seeds),
        draws=draws,
        baseline=baseline,
    )
    folder = folder_of(config, out)
    progress = console_progress()
    if dry_run:
        cells = planned_cells(settings, study, config.parent, folder)
        _show_estimates(estimate_table(estimates_of(cells, folder, progress)), as_json)
        return
    comparison, failed = run_study(
        settings, study, config.parent, folder, progress, run=not finished
    )
    if finished and comparison is None:
        raise UserError(f"{folder}: no run of this study is finished; leave --finished out")
    if comparison is not None:
        write_comparison(comparison, folder)
        _show(comparison, folder, as_json)
    if failed:
        runs = len(failed) + (0 if comparison is None else comparison["finished"])
        # A bug is reported before a user's error, because it decides the exit code.
        first = max(failed.values(), key=lambda failure: failure.fault)
        line = f"{len(failed)} of {runs} runs failed: {first.reason}"
        _stop(line, bug=first.fault)


def _show_estimates(estimated: tuple["Table", str], as_json: bool) -> None:
    from fedsdr.cli.table import print_json, print_tables

    (title, (header, *rows)), total = estimated
    if as_json:
        print_json([dict(zip(header, row, strict=True)) for row in rows])
    else:
        print_tables([(title, [header, *rows])], [total])


def _show(comparison: dict[str, Any], folder: Path, as_json: bool) -> None:
    from fedsdr.cli.table import print_json, print_next, print_tables
    from fedsdr.research.compare.comparison_table import notes_of, tables_of

    if as_json:
        print_json(comparison)
        return
    print_tables(tables_of(comparison), notes_of(comparison))
    print(f"\nin {folder}: compare.md, compare.csv, compare.json; every run in cells/")
    print_next(the_page_of_the_comparison=command_line("report", folder))


def _stop(line: str, *, bug: bool) -> None:
    if not bug:
        raise UserError(line)
    print(f"fedsdr: {line}", file=sys.stderr)
    sys.exit(1)


def with_model_and_data(settings: Config, model: str | None, data: Path | None) -> Config:
    """Return `settings` with another model, and other data for the key that names its own."""
    if model is not None:
        table = {"model": {"name": model, "revision": ""}}
        settings = with_values(settings, table, f"--model {model}", Path.cwd())
    if data is not None:
        key = "source" if settings.data.source else "clients"
        own: dict[str, Any] = {"data": {key: str(data), "include": []}}
        settings = with_values(settings, own, f"--data {data}", Path.cwd())
    return settings


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _whole_numbers(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(number) for number in _names(text) or []]
    except ValueError:
        raise UserError(f"--seeds {text}: takes whole numbers: 0,1,2") from None


def _swept(settings: Config, text: str) -> tuple[str, list[Any]]:
    """Return the key and its values, with paths relative to the working directory."""
    key, _, listed = text.partition("=")
    values = parse_value(f"[{listed}]")
    if not isinstance(values, list):  # bare words
        values = [parse_value(value) for value in _names(listed) or []]
    key, where = key.strip(), f"--sweep {text}"
    return key, [
        value_of(with_values(settings, nested(key, value), where, Path.cwd()), key)
        for value in values
    ]
