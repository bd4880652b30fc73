"""fedsdr chat: compare the answers of a run's models side by side."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedsdr.cli.options import run_folder

if TYPE_CHECKING:
    from fedsdr.types import Decoding, Turn

MOST_TALKS = 20  # conversations of the browser's pages


@click.command()
@run_folder
@click.option("--client", help="Client whose model also answers [default: the first by name].")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option(
    "--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0: greedy."
)
@click.option("--web", is_flag=True, help="Talk in a browser on this machine, at a secret address.")
def chat(run: Path, client: str | None, max_new_tokens: int, temperature: float, web: bool) -> None:
    """Talk to the base, global and a client's model at once, a line a turn.

    /client NAME, /reset, /help; an empty line or the end of the input quits.
    """
    from fedsdr.types import Decoding

    decoding = Decoding(temperature=temperature, max_new_tokens=max_new_tokens)
    if web:
        from fedsdr.cli.chat_web import serve_chat

        serve_chat(run.resolve().name, answering(run, client, decoding))
        return
    from fedsdr.cli.chat_lines import questions

    talk = Conversation(run, client, decoding)
    for line in questions():
        if line.startswith("/"):
            if line == "/quit":
                return
            click.echo(_command(talk, line))
        else:
            _answer(talk, line)


def _command(talk: "Conversation", line: str) -> str:
    """Carry out a line that starts with / and return what to say."""
    from fedsdr.cli.chat_lines import HELP
    from fedsdr.errors import UserError

    name, _, rest = line.partition(" ")
    try:
        if name == "/client":
            talk.use(rest.strip())
            return f"answering: {', '.join(talk.names)}"
        if name == "/reset":
            talk.turns.clear()
            return "all turns are forgotten"
    except UserError as error:  # the chat goes on
        return str(error)
    return HELP if name == "/help" else f"no command {name}\n{HELP}"


def _answer(talk: "Conversation", question: str) -> None:
    """Print the answers as they grow: side by side on a wide terminal, else one below the other."""
    from fedsdr.cli.chat_lines import Below, Beside, fits, terminal_columns
    from fedsdr.errors import printable

    columns = terminal_columns()
    shown = Beside(talk.names, columns) if fits(len(talk.names), columns) else Below()
    with contextlib.closing(shown):
        on_text = (lambda name, text: shown.show(name, printable(text))) if columns else None
        for name, text in talk.ask(question, on_text):
            shown.end(name, printable(text))


class Conversation:
    """The turns with each of a run's models; `names` are those that answer.

    `client`: whose model answers beside base and global; None: the first by name.
    """

    def __init__(self, run: Path, client: str | None, decoding: "Decoding") -> None:
        from fedsdr.runs.run_folder import open_run
        from fedsdr.runs.served_models import models_of

        self._runtime, state = open_run(run)
        self._decoding, self._models = decoding, dict(models_of(self._runtime, state))
        self._numbers = itertools.count(1)  # a seed for each question
        self.turns: dict[str, list[Turn]] = {}  # model -> what was said
        self._clients = {
            name.removeprefix("client "): name
            for name in self._models
            if name.startswith("client ")
        }
        self.use(min(self._clients, default="") if client is None else client)

    def use(self, client: str) -> None:
        """Have this client's model answer. UserError if it has none of its own."""
        from fedsdr.errors import choose

        if self._clients or client:
            choose(client, self._clients, "--client")
        names = ("base", "global", self._clients.get(client))
        self.names = [name for name in names if name in self._models]

    def ask(
        self, question: str, on_text: Callable[[str, str], None] | None = None
    ) -> Iterator[tuple[str, str]]:
        """Yield (model, answer), each after all that was said to this model before.

        `on_text` is given a model and its answer so far, after each token.
        """
        from fedsdr.types import GenerationRequest, Turn

        seed, asked = next(self._numbers), Turn("user", question)
        for name in self.names:
            said = self.turns.setdefault(name, [])
            request = GenerationRequest(name, (*said, asked), seed=seed)
            with self._models[name]():
                generate = self._runtime.generate(1, on_text=on_text)
                (answer,) = generate([request], self._decoding)
            text = answer.text.strip()
            said += [asked, Turn("assistant", text)]
            yield name, text


def answering(
    run: Path, client: str | None, decoding: "Decoding"
) -> Callable[[str, str], Iterator[tuple[str, str]]]:
    """Load a run's models; return a function that yields (model, answer) for a question.

    Its other argument names the conversation, of which the last `MOST_TALKS` are remembered.
    """
    talk = Conversation(run, client, decoding)
    turns: dict[str, dict[str, list[Turn]]] = {}

    def ask(question: str, conversation: str) -> Iterator[tuple[str, str]]:
        talk.turns = turns[conversation] = turns.pop(conversation, {})
        if len(turns) > MOST_TALKS:
            del turns[next(iter(turns))]
        return talk.ask(question)

    return ask
