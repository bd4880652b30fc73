"""fedsdr data: what each client holds, and what the model will see of it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedsdr.cli.options import config_file, load_checked, overrides

if TYPE_CHECKING:
    from rich.table import Table

    from fedsdr.types import ClientData


@click.command()
@config_file
@overrides
@click.option(
    "--write",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write each client's rows to FOLDER/CLIENT.jsonl, for sites of their own.",
)
@click.option("--rows", default=1, show_default=True, help="Rows of each client to preview.")
def data(config: Path, set_: tuple[str, ...], write: Path | None, rows: int) -> None:
    """Show counts, lengths, skew, and rows as the model sees them with the loss mask."""
    from rich.table import Table
    from rich.text import Text

    from fedsdr.cli.table import wide_console
    from fedsdr.data.chat_templates import preview, render_for
    from fedsdr.data.clients import load_clients
    from fedsdr.evaluation.metrics import metric_for
    from fedsdr.models.base_model import load_tokenizer
    from fedsdr.models.packing import supervised_tokens

    settings = load_checked(config, set_)
    clients = load_clients(settings.data)
    if write:
        _write_rows(clients, write)
    tokenizer = load_tokenizer(settings.model)
    renderer = render_for(tokenizer, settings.model.template)
    console = wide_console()
    table = Table(
        title=f"template: {renderer.name}, at most {settings.data.max_length} tokens a row"
    )
    columns = (
        "client",
        "train",
        "test",
        "tokens a row",
        "supervised",
        "cut rows",
        "empty",
        "metric",
    )
    for name in columns:
        table.add_column(name, justify="left" if name in ("client", "metric") else "right")
    silent = []
    for client in clients:
        encoded = [renderer.encode(e, settings.data.max_length) for e in client.raw]
        counted = [supervised_tokens(row) for row in encoded]
        if not any(counted):
            silent.append(client.client_id)
        table.add_row(
            client.client_id,
            str(len(client.raw)),
            str(len(client.test)),
            f"{sum(len(r.tokens) for r in encoded) / len(encoded):.0f}",
            f"{sum(counted) / len(encoded):.0f}",
            str(sum(row.cut > 0 for row in encoded)),
            str(counted.count(0)),
            metric_for((*client.raw, *client.test)).name,
        )
    console.print(table)
    categories = sorted({e.category for c in clients for e in c.raw if e.category})
    if len(categories) > 1:
        console.print(_category_table(clients, categories))
    for client in clients:
        for example in client.raw[:rows]:
            row = renderer.encode(example, settings.data.max_length)
            console.rule(f"{client.client_id}: {example.id}")
            for text, counts in preview(row, tokenizer):
                console.print(Text(text, style="bold green" if counts else "dim"), end="")
                if counts and not console.is_terminal:
                    console.print("  <-- in the loss", end="")
            console.print()
            if row.cut:
                console.print(f"({row.cut} tokens cut by data.max_length)")
    console.print("\nbold green: counted in the loss; dim: read only", highlight=False)
    if silent:
        from fedsdr.errors import UserError

        raise UserError(
            f"no supervised token in the training rows of: {', '.join(silent)}; "
            "a run would refuse to start (raise data.max_length)"
        )


def _write_rows(clients: Sequence["ClientData"], folder: Path) -> None:
    """Write training and test rows of each client into a file; UserError where there is one."""
    import json

    from fedsdr.data.formats import row_from_example
    from fedsdr.errors import UserError
    from fedsdr.files import write_atomically

    files = {folder / f"{client.client_id}.jsonl": client for client in clients}
    if there := [path for path in files if path.exists()]:
        raise UserError(f"--write: {there[0]} is there already; choose another folder")
    for path, client in files.items():
        rows = (row_from_example(example) for example in (*client.raw, *client.test))
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(path, "".join(lines))
    print(f"{len(files)} files in {folder}\n")


def _category_table(clients: Sequence["ClientData"], categories: Sequence[str]) -> "Table":
    """Rows a category and client: the label skew."""
    from rich.table import Table

    shown = categories[:12]
    table = Table(title="training rows by category")
    table.add_column("client")
    for name in shown:
        table.add_column(name, justify="right")
    for client in clients:
        counts = Counter(example.category for example in client.raw)
        table.add_row(client.client_id, *(str(counts[name]) for name in shown))
    return table
