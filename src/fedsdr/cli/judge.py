"""fedsdr judge: a blind judge between the answers of several runs."""

from functools import partial
from pathlib import Path

import click

from fedsdr.cli.options import command_line, count_option, overrides


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@overrides
@click.option("--endpoint", required=True, metavar="URL", help="As in http://localhost:8000/v1.")
@click.option("--model", required=True, help="The judge's name at the endpoint.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--of", default="global", show_default=True, help="global or client models.")
@click.option("--base", is_flag=True, help="Add the base model of the first run.")
@count_option("--rows", 20, "Test rows per client, at most.")
@click.option("--seed", default=0, show_default=True, help="Draws the rows and the orders.")
@click.option(
    "--api-key-env",
    default="OPENAI_API_KEY",
    show_default=True,
    help="The environment variable that holds the key.",
)
@click.option("--allow-remote", is_flag=True, help="Test rows may leave this machine.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=120.0,
    show_default=True,
    help="Seconds to wait for a verdict.",
)
def judge(
    runs: tuple[Path, ...],
    set_: tuple[str, ...],
    endpoint: str,
    model: str,
    out: Path,
    of: str,
    base: bool,
    rows: int,
    seed: int,
    api_key_env: str,
    allow_remote: bool,
    timeout: float,
) -> None:
    """Ask any OpenAI-compatible endpoint which of the runs' models answers their test rows best.

    The judge sees two answers at a time, in both orders, without the models' names. No other
    command needs its verdicts. docs/judge.md explains each number.
    """
    from fedsdr.cli.progress import console_progress
    from fedsdr.cli.table import print_next, write_and_print
    from fedsdr.research.judge.judge_runs import check_endpoint
    from fedsdr.research.judge.judge_runs import judge as judge_runs
    from fedsdr.research.judge.verdicts import notes_of, table_of
    from fedsdr.teachers.openai_endpoint import openai_generate

    ask = partial(
        openai_generate,
        endpoint,
        model,
        api_key_env=api_key_env,
        allow_remote=allow_remote,
        timeout=timeout,
        setting="--endpoint",
        consent="add --allow-remote",
    )
    check_endpoint(ask(attempts=2))
    found = judge_runs(
        runs, ask(), out, console_progress(),
        judged_by=model, model=of, base=base, rows=rows, seed=seed, overrides=set_,
    )  # fmt: skip
    title = f"The {of} models judged"
    write_and_print(out, "judge", found, title, [table_of(found)], notes_of(found))
    print_next(the_runs_side_by_side=command_line("report", *runs))
