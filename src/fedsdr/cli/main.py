"""The `fedsdr` command.

Exit codes: 0 done; 2 what the user can fix; 1 our fault; 128 + N stopped by signal N (130 Ctrl-C,
143 SIGTERM, 129 SIGHUP).
"""

import difflib
import io
import itertools
import logging
import os
import signal
import sys
import warnings
from types import FrameType

import click

from fedsdr.cli.adapt import adapt
from fedsdr.cli.chat import chat
from fedsdr.cli.compare import compare
from fedsdr.cli.completion import completion
from fedsdr.cli.data import data
from fedsdr.cli.demo import demo
from fedsdr.cli.diagnose import diagnose
from fedsdr.cli.distill import distill
from fedsdr.cli.doctor import doctor
from fedsdr.cli.evaluate import evaluate
from fedsdr.cli.export import export
from fedsdr.cli.init import init
from fedsdr.cli.judge import judge
from fedsdr.cli.options import command_line
from fedsdr.cli.report import report
from fedsdr.cli.run import run
from fedsdr.cli.site import site
from fedsdr.cli.watch import watch
from fedsdr.errors import UserError, printable
from fedsdr.files import REFUSALS
from fedsdr.toml_yaml import shown

# In the order of `fedsdr --help`.
GROUPS: dict[str, tuple[click.Command, ...]] = {
    "Start": (demo, init, doctor),
    "Run": (data, distill, run, watch, evaluate, report),
    "Use the models": (chat, export, adapt),
    "Research": (compare, diagnose, judge),
    "Set up": (site, completion),
}
# What users of other programs type -> our command.
SYNONYMS = {
    "train": "run", "fit": "run", "finetune": "run", "start": "run", "resume": "run",
    "quickstart": "demo", "new": "init", "create": "init", "check": "doctor", "version": "doctor",
    "rewrite": "distill", "eval": "evaluate", "test": "evaluate", "benchmark": "evaluate",
    "generate": "chat", "predict": "chat", "merge": "export", "save": "export", "plot": "report",
    "sweep": "compare", "preview": "data",
}  # fmt: skip


class _Commands(click.Group):
    """Lists the commands by GROUPS, and answers an unknown one with the one that is meant."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in GROUPS.items():
            with formatter.section(title):
                rows = [(c.name or "", c.get_short_help_str(limit=1000)) for c in commands]
                formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self.commands and not name.startswith("-"):
            close = difflib.get_close_matches(name, [*self.commands, *SYNONYMS], n=1)
            hint = f"did you mean '{SYNONYMS.get(close[0], close[0])}'? " if close else ""
            raise click.UsageError(f"no command '{name}'; {hint}all are in: fedsdr --help")
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Commands,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="fedsdr")
def cli() -> None:
    """Federated fine-tuning of language models on data that disagree."""


for command in itertools.chain(*GROUPS.values()):
    cli.add_command(command)


class _Terminated(BaseException):
    """SIGTERM or SIGHUP arrived. It unwinds the stack as KeyboardInterrupt does, so child processes
    are ended; unlike KeyboardInterrupt, click does not turn it into Abort."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated(number)


def main() -> None:
    """Run the command line; see the module for the exit codes."""
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP; nohup has it ignored
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _terminate)
    for stream in (sys.stdout, sys.stderr):  # names of files need not be UTF-8
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # What these libraries print while loading does not concern the user.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for quiet in (
        "TQDM_DISABLE",
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "HF_DATASETS_DISABLE_PROGRESS_BARS",
    ):
        os.environ.setdefault(quiet, "1")  # fedsdr shows its own progress
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.formatwarning = _one_line
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    try:
        cli.main(prog_name="fedsdr", standalone_mode=False)
    except UserError as error:
        _stop(" ".join(str(error).split()), 2)
    except OSError as error:  # of a path that only a command looks at
        if error.filename is None or error.errno not in REFUSALS:
            raise
        _stop(f"{shown(str(error.filename))}: {error.strerror}", 2)
    except (KeyboardInterrupt, click.Abort, _Terminated) as stop:
        number = stop.args[0] if isinstance(stop, _Terminated) else signal.SIGINT
        _stop(f"stopped; finished work is kept; go on with: {_same_again()}", 128 + number)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        sys.exit(2)
    except click.ClickException as error:
        _stop(" ".join(error.format_message().split()), 2)


def _same_again() -> str:
    """Return the command that goes on with a stopped one: the same, and a run is resumed."""
    given = sys.argv[1:]
    resume = ["--resume"] if "run" in given[:1] and "--resume" not in given else []
    return command_line(*given, *resume)


def _one_line(message: Warning | str, *_: object, **__: object) -> str:
    return printable(f"fedsdr: warning: {' '.join(str(message).split())}\n")


def _stop(message: str, code: int) -> None:
    print(printable(f"fedsdr: {message}"), file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
