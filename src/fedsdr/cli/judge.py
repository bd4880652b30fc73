"""fedsdr judge: a blind judge between the answers of several runs."""

import json
from functools import partial
from pathlib import Path

import click

from fedsdr.cli.options import overrides


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@overrides
@click.option("--endpoint", required=True, metavar="URL", help="As in http://localhost:8000/v1.")
@click.option("--model", required=True, help="The judge's name at the endpoint.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--of", default="global", show_default=True, help="global or client models.")
@click.option("--base", is_flag=True, help="Add the base model of the first run.")
@click.option("--rows", default=20, show_default=True, help="Test rows per client, at most.")
@click.option("--seed", default=0, show_default=True, help="Draws the rows and the orders.")
@click.option(
    "--api-key-env",
    default="OPENAI_API_KEY",
    show_default=True,
    help="The environment variable that holds the key.",
)
@click.option("--allow-remote", is_flag=True, help="Test rows may leave this machine.")
@click.option("--timeout", default=120.0, show_default=True, help="Seconds to wait for a verdict.")
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
    from fedsdr.cli.table import print_explained
    from fedsdr.errors import UserError
    from fedsdr.files import write_atomically
    from fedsdr.research.diagnose.summary import markdown_of
    from fedsdr.research.judge.judge_runs import check_endpoint
    from fedsdr.research.judge.judge_runs import judge as judge_runs
    from fedsdr.research.judge.verdicts import notes_of, table_of
    from fedsdr.teachers.openai_endpoint import openai_generate

    if rows < 1:
        raise UserError(f"--rows: is {rows}; it must be at least 1")
    if not timeout > 0:
        raise UserError(f"--timeout: is {timeout}; it must be more than 0")
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
    tables, notes = [table_of(found)], notes_of(found)
    write_atomically(out / "judge.json", json.dumps(found, indent=2, allow_nan=False) + "\n")
    write_atomically(out / "judge.md", markdown_of(f"The {of} models judged", tables, notes))
    print_explained(tables, notes)
    print(f"\nin {out}: judge.json, judge.md, verdicts.jsonl")
