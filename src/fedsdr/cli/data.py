"""fedsdr data: what each client holds, and what the model will see of it."""

import functools
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from fedsdr.cli.options import (
    command_line,
    config_file,
    json_option,
    load_checked,
    overrides,
    set_options,
)

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
@click.option("--plot", is_flag=True, help="Draw who holds how much of each category, and end.")
@json_option
def data(
    config: Path,
    set_: tuple[str, ...],
    write: Path | None,
    rows: int,
    plot: bool,
    as_json: bool,
) -> None:
    """Show counts, lengths, skew, and rows as the model sees them with the loss mask."""
    from fedsdr.cli.table import print_json, print_next
    from fedsdr.data.chat_templates import render_for
    from fedsdr.errors import UserError
    from fedsdr.models.base_model import checked_shape, load_tokenizer
    from fedsdr.models.model_limits import check_limits, limits_of
    from fedsdr.training.methods import METHODS

    settings = load_checked(config, set_)
    clients = _checked_clients(settings)
    if plot:
        _draw(clients)
        if write:
            _write_rows(clients, write, sys.stdout)
        return
    tokenizer = load_tokenizer(settings.model)
    renderer = render_for(tokenizer, settings.model.template)
    limits = limits_of(checked_shape(settings.model), tokenizer)
    rewrites = METHODS[settings.method.name].rewrites
    note = check_limits(limits, settings, renderer.stop_token_ids, rewrites=rewrites)
    notes = [note] if note else []
    max_length = settings.data.max_length
    counted: list[dict[str, Any]] = []
    silent: list[str] = []
    for client in clients:
        try:
            counts, without, note = _counts_of(client, renderer, max_length, limits)
        except UserError as error:
            raise UserError(f"client '{client.client_id}': {error}") from error
        counted.append(counts)
        silent += without
        notes += [note] if note else []
    if write:
        _write_rows(clients, write, sys.stderr if as_json else sys.stdout)
    categories = _categories_of(clients)
    if as_json:
        facts = {"template": renderer.name, "max_length": max_length, "notes": notes}
        print_json({**facts, "clients": counted, "categories": categories})
    else:
        _print_counts(counted, categories, renderer, max_length, notes)
        _print_rows(clients, rows, renderer, max_length)
    if silent:
        raise UserError(
            f"no supervised token in: {', '.join(silent)}; a run would refuse to start "
            "(raise data.max_length)"
        )
    if not as_json:
        print_next(train=command_line("run", config, *set_options(set_)))


def _print_counts(
    counted: Sequence[Mapping[str, Any]],
    categories: Mapping[str, Mapping[str, int]],
    renderer: "Renderer",
    max_length: int,
    notes: Sequence[str],
) -> None:
    from fedsdr.cli.table import print_tables

    title = f"template: {renderer.name}, at most {max_length} tokens a row"
    header = [name.replace("_", " ") for name in counted[0]]
    table = [header, *([str(value) for value in one.values()] for one in counted)]
    print_tables([(title, table), *_category_tables(categories)], notes)


def _print_rows(
    clients: Sequence["ClientData"], rows: int, renderer: "Renderer", max_length: int
) -> None:
    for client in clients:
        for example in client.raw[:rows]:
            _preview(client.client_id, example, renderer, max_length)
    print("\nbold green: counted in the loss; dim: read only")


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
) -> tuple[dict[str, Any], list[str], str]:
    """Return a client's line of the table by column, which of its rows have no supervised token,
    and a note on unknown tokens."""
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
    line = {
        "client": name,
        "train": rows,
        "test": len(client.test),
        "tokens_a_row": round(counts["tokens"] / rows),
        "supervised": round(counts["supervised"] / rows),
        "cut_rows": counts["cut"],
        "empty": counts["empty"],
        "metric": metric_for((*client.raw, *client.test)).name,
    }
    note = unknown_note(unknown)
    return line, silent, f"client '{name}': {note}" if note else ""


def _categories_of(clients: Sequence["ClientData"]) -> dict[str, dict[str, int]]:
    """Return client -> category -> training rows, the label skew; {} with fewer than 2 labels."""
    counts = {c.client_id: Counter(e.category for e in c.raw if e.category) for c in clients}
    several = len(set().union(*counts.values())) > 1
    return {name: dict(count) for name, count in counts.items()} if several else {}


def _category_tables(counts: Mapping[str, Mapping[str, int]]) -> list[tuple[str, list[list[str]]]]:
    """Return the label skew as a table, training rows by client and category."""
    from fedsdr.errors import printable

    if not counts:
        return []
    categories = sorted(set().union(*counts.values()))
    shown, more = categories[:MAX_CATEGORIES], len(categories) - MAX_CATEGORIES
    title = "training rows by category" + (f" ({more} categories more)" if more > 0 else "")
    rows = [[name, *(str(count.get(c, 0)) for c in shown)] for name, count in counts.items()]
    return [(title, [["client", *map(printable, shown)], *rows])]


def _draw(clients: Sequence["ClientData"]) -> None:
    """Print the training rows of each client as bars."""
    from fedsdr.cli.bars import client_bars
    from fedsdr.errors import printable

    counts = {client.client_id: Counter(e.category for e in client.raw) for client in clients}
    for line in client_bars(counts):
        print(printable(line))


def _preview(client_id: str, example: "Example", renderer: "Renderer", max_length: int) -> None:
    """Print a row as the model sees it, with the loss mask."""
    from rich.text import Text

    from fedsdr.cli.table import wide_console
    from fedsdr.data.chat_templates import preview
    from fedsdr.errors import printable

    console = wide_console()
    row = renderer.encode(example, max_length)
    console.print(Text(printable(f"\n── {client_id}: {example.id}")), style="green")
    for text, counts in preview(row, renderer.tokenizer):
        console.print(Text(printable(text), style="bold green" if counts else "dim"), end="")
        if counts and not console.is_terminal:
            console.print("  <-- in the loss", end="")
    console.print()
    if row.cut:
        console.print(f"({row.cut} tokens cut by data.max_length)")


def _write_rows(clients: Sequence["ClientData"], folder: Path, said_to: TextIO) -> None:
    """Write all rows of each client into a file; UserError if one exists."""
    import json

    from fedsdr.data.formats import row_from_example
    from fedsdr.errors import UserError
    from fedsdr.files import write_file

    def write_lines(path: Path, client: "ClientData") -> None:
        with path.open("w", encoding="utf-8") as file:
            for example in (*client.raw, *client.validation, *client.test):
                file.write(json.dumps(row_from_example(example), ensure_ascii=False) + "\n")

    files = {folder / f"{client.client_id}.jsonl": client for client in clients}
    if existing := [path for path in files if path.exists()]:
        raise UserError(f"--write: {existing[0]} exists already; choose another folder")
    for path, client in files.items():
        write_file(path, functools.partial(write_lines, client=client))
    print(f"{len(files)} files in {folder}\n", file=said_to)
