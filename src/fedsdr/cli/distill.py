"""fedsdr distill: rewrite every client's data once, and the audit."""

from pathlib import Path

import click

from fedsdr.cli.options import (
    command_line,
    config_file,
    folder_of,
    load_checked,
    out_folder,
    overrides,
    set_options,
)


@click.command()
@config_file
@overrides
@out_folder
def distill(config: Path, set_: tuple[str, ...], out: Path | None) -> None:
    """Rewrite every client's training answers once and count what became of them.

    What was made before is taken from the cache, and a stopped command goes on.
    """
    from fedsdr.cli.progress import console_progress
    from fedsdr.cli.table import print_next, print_tables
    from fedsdr.data.clients import load_clients, taking_part
    from fedsdr.distill.records import read_audit
    from fedsdr.errors import UserError
    from fedsdr.file_reading import stands
    from fedsdr.files import alone
    from fedsdr.report.run_section import rewriting_table
    from fedsdr.runs.client_runtime import open_runtime
    from fedsdr.runs.rewriting import distill_clients
    from fedsdr.runs.row_checks import check_clients
    from fedsdr.runs.run_folder import checked_config
    from fedsdr.runs.teacher_setup import prepare_rewriting
    from fedsdr.training.methods import METHODS

    folder = folder_of(config, out)
    settings = load_checked(config, set_)
    settings = checked_config(settings, folder, resume=True)
    if stands(folder / "config.toml"):
        lost = METHODS[settings.method.name].rewrites and stands(folder / "checkpoint")
        if read_audit(folder / "distilled") or lost:
            raise UserError(
                f"{folder}: holds a run, whose rewrites must not change; choose another --out"
            )
    clients = taking_part(load_clients(settings.data), settings.data)
    runtime = open_runtime(settings, folder)
    check_clients(runtime, clients, print, rewrites=True)
    rewriting = prepare_rewriting(runtime)
    with alone(folder):
        distill_clients(runtime, rewriting, clients, console_progress())
    print_tables([rewriting_table(read_audit(folder / "distilled"))])
    print(f"\nrewrites in {folder / 'distilled'}/")
    print_next(train_on_them=command_line("run", config, *set_options(set_), "--out", folder))
