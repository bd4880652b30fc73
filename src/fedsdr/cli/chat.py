"""fedsdr chat: compare the answers of a run's models side by side."""

import sys
from pathlib import Path

import click

from fedsdr.cli.options import run_folder


@click.command()
@run_folder
@click.option("--client", help="Client whose model also answers [default: the first by name].")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option(
    "--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0: greedy."
)
def chat(run: Path, client: str | None, max_new_tokens: int, temperature: float) -> None:
    """Ask the base, global and a client's model the same questions, one per line.

    Questions are independent of each other. An empty line or end of input quits.
    """
    from fedsdr.errors import choose, printable
    from fedsdr.runs.run_folder import open_run
    from fedsdr.runs.served_models import models_of
    from fedsdr.types import Decoding, GenerationRequest, Turn

    runtime, state = open_run(run)
    models = dict(models_of(runtime, state))
    clients = {name.removeprefix("client "): name for name in models if name.startswith("client ")}
    if client is not None:
        choose(client, clients, "--client")
    own = clients.get(client or min(clients, default=""))
    names = [name for name in ("base", "global", own) if name in models]
    decoding = Decoding(temperature=temperature, max_new_tokens=max_new_tokens)
    number = 0
    while question := _read_question():
        number += 1
        request = GenerationRequest("question", (Turn("user", question),), seed=number)
        for name in names:
            with models[name]():
                (answer,) = runtime.generate(1)([request], decoding)
            click.secho(f"{name}:", bold=True)
            click.echo(f"{printable(answer.text.strip())}\n")


def _read_question() -> str:
    if sys.stdin.isatty():
        click.echo("> ", nl=False)
    return sys.stdin.readline().strip()
