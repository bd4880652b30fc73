"""fedsdr chat: compare the answers of a run's models side by side."""

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedsdr.cli.options import run_folder

if TYPE_CHECKING:
    from fedsdr.types import Decoding


@click.command()
@run_folder
@click.option("--client", help="Client whose model also answers [default: the first by name].")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option(
    "--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0: greedy."
)
@click.option("--web", is_flag=True, help="Talk in a browser on this machine, at a secret address.")
def chat(run: Path, client: str | None, max_new_tokens: int, temperature: float, web: bool) -> None:
    """Ask the base, global and a client's model the same questions, one per line.

    Questions are independent of each other. An empty line or end of input quits.
    """
    from fedsdr.errors import printable
    from fedsdr.types import Decoding

    decoding = Decoding(temperature=temperature, max_new_tokens=max_new_tokens)
    ask = answering(run, client, decoding)
    if web:
        from fedsdr.cli.chat_web import serve_chat

        serve_chat(run.resolve().name, ask)
        return
    while question := _read_question():
        for name, answer in ask(question):
            click.secho(f"{name}:", bold=True)
            click.echo(f"{printable(answer)}\n")


def answering(
    run: Path, client: str | None, decoding: "Decoding"
) -> Callable[[str], Iterator[tuple[str, str]]]:
    """Load a run's models; return a function that yields (model, answer) for a question.

    `client`: whose model answers beside base and global; None: the first by name.
    """
    from fedsdr.errors import choose
    from fedsdr.runs.run_folder import open_run
    from fedsdr.runs.served_models import models_of
    from fedsdr.types import GenerationRequest, Turn

    runtime, state = open_run(run)
    models = dict(models_of(runtime, state))
    clients = {name.removeprefix("client "): name for name in models if name.startswith("client ")}
    if client is not None:
        choose(client, clients, "--client")
    own = clients.get(client or min(clients, default=""))
    names = [name for name in ("base", "global", own) if name in models]
    numbers = itertools.count(1)  # a seed for each question

    def ask(question: str) -> Iterator[tuple[str, str]]:
        request = GenerationRequest("question", (Turn("user", question),), seed=next(numbers))
        for name in names:
            with models[name]():
                (answer,) = runtime.generate(1)([request], decoding)
            yield name, answer.text.strip()

    return ask


def _read_question() -> str:
    if sys.stdin.isatty():
        click.echo("> ", nl=False)
    return sys.stdin.readline().strip()
