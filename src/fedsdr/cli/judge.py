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
@click.option("--model", required=True, help="The name that the endpoint knows the judge by.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--of", default="global", show_default=True, help="global or client models.")
@click.option("--base", is_flag=True, help="Let the base model of the first run compete too.")
@click.option("--rows", default=20, show_default=True, help="Test rows of a client at most.")
@click.option("--seed", default=0, show_default=True, help="Of the choice of rows and of orders.")
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

    The judge does not learn whose answers it reads and sees them in both orders. No result of any
    other command needs it. What each number means: docs/judge.md.
    """
    from fedsdr.cli.progress import console_progress
    from fedsdr.cli.table import print_tables
    from fedsdr.errors import UserError
    from fedsdr.evaluation.results import to_markdown
    from fedsdr.files import write_atomically
    from fedsdr.research.judge.judge_runs import DECODING
    from fedsdr.research.judge.judge_runs import judge as judge_runs
    from fedsdr.research.judge.verdicts import notes_of, tables_of
    from fedsdr.teachers.openai_endpoint import openai_generate
    from fedsdr.types import GenerationRequest, Turn

    if rows < 1:
        raise UserError(f"--rows: is {rows}; it must be at least 1")
    if not timeout > 0:
        raise UserError(f"--timeout: is {timeout}; it must be more than 0")
    endpoint_with = partial(
        openai_generate,
        endpoint,
        model,
        api_key_env=api_key_env,
        allow_remote=allow_remote,
        timeout=timeout,
        setting="--endpoint",
        consent="add --allow-remote",
    )
    # An endpoint that is down is told of before the answers take their time.
    hello = GenerationRequest("hello", (Turn("user", "Say OK."),))
    list(endpoint_with(attempts=2)([hello], DECODING))
    found = judge_runs(
        runs,
        endpoint_with(),
        out,
        console_progress(),
        judged_by=model,
        model=of,
        base=base,
        rows=rows,
        seed=seed,
        overrides=set_,
    )
    tables, notes = tables_of(found), notes_of(found)
    write_atomically(out / "judge.json", json.dumps(found, indent=2, allow_nan=False) + "\n")
    parts = [
        f"# The {of} models judged\n",
        *(f"## {t}\n\n{to_markdown(rows)}" for t, rows in tables),
    ]
    write_atomically(out / "judge.md", "\n".join([*parts, *notes]) + "\n")
    print_tables(tables, notes)
    print(f"\nin {out}: judge.json, judge.md, verdicts.jsonl")
