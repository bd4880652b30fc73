"""fedsdr data: what each client holds, and what the model will see of it."""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedsdr.cli.options import config_file, load_checked, overrides

if TYPE_CHECKING:
    from fedsdr.config import Config
    from fedsdr.data.chat_templates import Renderer
    from fedsdr.models.model_limits import ModelLimits
    from fedsdr.types import ClientData, Example, TokenRow

MAX_CATEGORIES = 12  # columns of the table


@click.command()
@config_file
@overrides
@click.option(
    "--write",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write each client's rows to FOLDER/CLIENT.jsonl, for sites of their own.",
)
@click.option(
    "--rows",
    default=1,
    type=click.IntRange(min=0),
    show_default=True,
    help="Rows of each client to preview.",
)
def data(config: Path, set_: tuple[str, ...], write: Path | None, rows: int) -> None:
    """Show counts, lengths, skew, and rows as the model sees them with the loss mask."""
    from fedsdr.cli.table import print_tables
    from fedsdr.data.chat_templates import render_for
    from fedsdr.errors import UserError
    from fedsdr.models.base_model import checked_shape, load_tokenizer
    from fedsdr.models.model_limits import check_limits, limits_of
    from fedsdr.training.methods import METHODS

    settings = load_checked(config, set_)
    clients = _checked_clients(settings)
    tokenizer = load_tokenizer(settings.model)
    renderer = render_for(tokenizer, settings.model.template)
    limits = limits_of(checked_shape(settings.model), tokenizer)
    rewrites = METHODS[settings.method.name].rewrites
    note = check_limits(limits, settings, renderer.stop_token_ids, rewrites=rewrites)
    notes = [note] if note else []
    max_length = settings.data.max_length
    header = ["client", "train", "test", "tokens a row", "supervised", "cut rows", "empty"]
    table: list[list[str]] = [[*header, "metric"]]
    silent: list[str] = []
    for client in clients:
        try:
            line, without, note = _counts_of(client, renderer, max_length, limits)
        except UserError as error:
            raise UserError(f"client '{client.client_id}': {error}") from error
        table.append(line)
        silent += without
        notes += [note] if note else []
    if write:
        _write_rows(clients, write)
    title = f"template: {renderer.name}, at most {max_length} tokens a row"
    print_tables([(title, table), *_category_tables(clients)], notes)
    for client in clients:
        for example in client.raw[:rows]:
            _preview(client.client_id, example, renderer, max_length)
    print("\nbold green: counted in the loss; dim: read only")
    if silent:
        raise UserError(
            f"no supervised token in: {', '.join(silent)}; a run would refuse to start "
            "(raise data.max_length)"
        )


def _checked_clients(settings: "Config") -> list["ClientData"]:
    """Load the clients; UserError for what a run would refuse before it loads the model."""
    from fedsdr.data.clients import load_clients
    from fedsdr.distill.prompts import load_prompts
    from fedsdr.runs.run_plan import announced_by, plan_of
    from fedsdr.training.methods import METHODS

    if METHODS[settings.method.name].rewrites:
        load_prompts(settings.teacher.prompts or None)
    clients = load_clients(settings.data)
    plan_of(settings, announced_by(clients))
    return clients


def _counts_of(
    client: "ClientData", renderer: "Renderer", max_length: int, limits: "ModelLimits"
) -> tuple[list[str], list[str], str]:
    """Return a client's line of the table, which of its rows have no supervised token, and a note
    on unknown tokens."""
    from fedsdr.evaluation.metrics import metric_for
    from fedsdr.models.model_limits import check_tokens, unknown_note
    from fedsdr.models.packing import supervised_tokens

    def encoded(examples: Sequence["Example"]) -> Iterator["TokenRow"]:
        for example in examples:  # one at a time: encoded rows take more memory than their text
            row = renderer.encode(example, max_length)
            check_tokens(limits, row.tokens, f"row '{row.id}'")
            unknown.append(row.tokens.count(limits.unknown))
            yield row

    counts: Counter[str] = Counter()
    unknown: list[int] = []
    for row in encoded(client.raw):
        supervised = supervised_tokens(row)
        counts.update(tokens=len(row.tokens), supervised=supervised)
        counts.update(cut=row.cut > 0, empty=not supervised)
    rows, name = len(client.raw), client.client_id
    silent = [f"the training rows of {name}"] if counts["empty"] == rows else []
    tests = [supervised_tokens(row) for row in encoded(client.test)]
    if client.test and not any(tests):
        silent.append(f"the test rows of {name}")
    means = [f"{counts[key] / rows:.0f}" for key in ("tokens", "supervised")]
    metric = metric_for((*client.raw, *client.test)).name
    sizes = str(rows), str(len(client.test))
    line = [name, *sizes, *means, str(counts["cut"]), str(counts["empty"]), metric]
    note = unknown_note(unknown)
    return line, silent, f"client '{name}': {note}" if note else ""


def _category_tables(clients: Sequence["ClientData"]) -> list[tuple[str, list[list[str]]]]:
    """Return the label skew as a table, training rows by client and category."""
    from fedsdr.errors import printable

    counts = {c.client_id: Counter(e.category for e in c.raw if e.category) for c in clients}
    categories = sorted(set().union(*counts.values()))
    if len(categories) < 2:
        return []
    shown, more = categories[:MAX_CATEGORIES], len(categories) - MAX_CATEGORIES
    title = "training rows by category" + (f" ({more} categories more)" if more > 0 else "")
    rows = [[name, *(str(count[c]) for c in shown)] for name, count in counts.items()]
    return [(title, [["client", *map(printable, shown)], *rows])]


def _preview(client_id: str, example: "Example", renderer: "Renderer", max_length: int) -> None:
    """Print a row as the model sees it, with the loss mask."""
    from rich.text import Text

    from fedsdr.cli.table import wide_console
    from fedsdr.data.chat_templates import preview
    from fedsdr.errors import printable

    console = wide_console()
    row = renderer.encode(example, max_length)
    console.rule(Text(printable(f"{client_id}: {example.id}")))
    for text, counts in preview(row, renderer.tokenizer):
        console.print(Text(printable(text), style="bold green" if counts else "dim"), end="")
        if counts and not console.is_terminal:
            console.print("  <-- in the loss", end="")
    console.print()
    if row.cut:
        console.print(f"({row.cut} tokens cut by data.max_length)")


def _write_rows(clients: Sequence["ClientData"], folder: Path) -> None:
    """Write training and test rows of each client into a file; UserError if one exists."""
    import json

    from fedsdr.data.formats import row_from_example
    from fedsdr.errors import UserError
    from fedsdr.files import write_file

    def write_lines(path: Path, client: "ClientData") -> None:
        with path.open("w", encoding="utf-8") as file:
            for example in (*client.raw, *client.test):
                file.write(json.dumps(row_from_example(example), ensure_ascii=False) + "\n")

    files = {folder / f"{client.client_id}.jsonl": client for client in clients}
    if existing := [path for path in files if path.exists()]:
        raise UserError(f"--write: {existing[0]} exists already; choose another folder")
    for path, client in files.items():
        write_file(path, functools.partial(write_lines, client=client))
    print(f"{len(files)} files in {folder}\n")
