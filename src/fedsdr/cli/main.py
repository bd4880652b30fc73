"""The `fedsdr` command. Exit codes: 0 done; 2 what the user can fix; 130 stopped; 1 our fault."""

import logging
import os
import sys
import warnings

import click

from fedsdr.cli.chat import chat
from fedsdr.cli.compare import compare
from fedsdr.cli.data import data
from fedsdr.cli.diagnose import diagnose
from fedsdr.cli.distill import distill
from fedsdr.cli.doctor import doctor
from fedsdr.cli.evaluate import evaluate
from fedsdr.cli.export import export
from fedsdr.cli.init import init
from fedsdr.cli.judge import judge
from fedsdr.cli.report import report
from fedsdr.cli.run import run
from fedsdr.cli.site import site
from fedsdr.errors import UserError


@click.group(context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fedsdr")
def cli() -> None:
    """Federated fine-tuning of language models on data that disagree."""


for command in (
    init,
    data,
    distill,
    run,
    compare,
    evaluate,
    diagnose,
    judge,
    report,
    export,
    chat,
    doctor,
    site,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line; see the module for the exit codes."""
    # What these libraries say while loading is noise beside our own lines.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    try:
        cli.main(standalone_mode=False)
    except UserError as error:
        _stop(" ".join(str(error).split()), 2)
    except (KeyboardInterrupt, click.Abort):
        _stop("stopped; what is finished is kept (go on: run --resume, or compare again)", 130)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        sys.exit(2)
    except click.ClickException as error:
        _stop(" ".join(error.format_message().split()), 2)


def _stop(message: str, code: int) -> None:
    print(f"fedsdr: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
