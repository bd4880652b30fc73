"""fedsdr site: commands for a site of a Flower federation."""

from pathlib import Path

import click

from fedsdr.cli.options import config_file, load_checked, overrides


@click.group()
def site() -> None:
    """For a site that takes part in a run on other machines (docs/deploy.md)."""


@site.command()
@config_file
@overrides
@click.option("--client", required=True, metavar="NAME", help="The site's name.")
@click.option("--data", required=True, help="Its rows: a file, or a folder with NAME.jsonl in it.")
@click.option(
    "--state-dir", required=True, type=click.Path(path_type=Path), help="Where S is kept."
)
@click.option("--superlink", required=True, metavar="HOST:PORT", help="The SuperLink's address.")
@click.option("--root-certificates", type=click.Path(path_type=Path), help="As of the SuperNode.")
def check(
    config: Path,
    set_: tuple[str, ...],
    client: str,
    data: str,
    state_dir: Path,
    superlink: str,
    root_certificates: Path | None,
) -> None:
    """Check data, model, disk and connection before the site joins."""
    from fedsdr.errors import UserError
    from fedsdr.flower.site_check import site_checks

    settings, failed = load_checked(config, set_), []
    for what, run in site_checks(settings, client, data, state_dir, superlink, root_certificates):
        try:
            print(f"ok     {what}: {run()}")
        except UserError as error:
            failed.append(what)
            print(f"wrong  {what}: {error}")
    if failed:
        raise UserError(f"site '{client}' is not ready: {', '.join(failed)}")
