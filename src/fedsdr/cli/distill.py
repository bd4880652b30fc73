"""fedsdr distill: rewrite every client's data once, and the audit."""

from pathlib import Path

import click

from fedsdr.cli.options import config_file, folder_of, load_checked, out_folder, overrides


@click.command()
@config_file
@overrides
@out_folder
def distill(config: Path, set_: tuple[str, ...], out: Path | None) -> None:
    """Rewrite every client's training answers once and count what became of them.

    What was made before is taken from the cache, and a stopped command goes on.
    """
    from fedsdr.cli.progress import console_progress
    from fedsdr.cli.table import print_audit
    from fedsdr.data.clients import load_clients
    from fedsdr.runs.client_runtime import open_site
    from fedsdr.runs.rewriting import distill_clients, prepare_rewriting

    folder = folder_of(config, out)
    settings = load_checked(config, set_)
    clients = load_clients(settings.data)
    site = open_site(settings, folder)
    print_audit(distill_clients(site, prepare_rewriting(site), clients, console_progress()))
    print(f"\nrewrites in {folder / 'distilled'}/")
