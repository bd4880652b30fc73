"""What each client holds: files, folders, hub and embedded sets -> `ClientData`."""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fedsdr.config import DataConfig
from fedsdr.data.formats import REJECTED, Columns, example_from_row, unread_columns
from fedsdr.data.hub import hub_name, read_hub_rows
from fedsdr.data.partition import PARTITIONERS, Partitioner
from fedsdr.data.readers import READERS, place, read_rows
from fedsdr.data.split import prompt_groups, split, trained_elsewhere
from fedsdr.errors import UserError, choose, nearest
from fedsdr.seeds import seed_for
from fedsdr.types import ClientData, Example

EMBEDDED = "embedded:"
MAX_NAME = 200  # characters of a client's name: it names files, whose names have at most 255
Read = Callable[[], list[Example]]  # called only for the clients that are needed


def load_clients(data: DataConfig) -> list[ClientData]:
    """Return what every client holds, sorted by client id, `rewritten` empty.

    Either `clients`: a folder with one file a client, `embedded:NAME`, or a list of files
    and `hub:ORG/NAME[:config][@split]` names. Or `source`: the same, pooled and dealt by the
    partitioner to client-00, client-01, ... Rows of one prompt go to one client, so that no
    client's test rows are another's training rows. With several sources, a row without a category
    takes the name of its source. `include` names the clients to keep (empty: all),
    `leave_out` those of them that take no part (`taking_part`).
    A warning names columns that are not read, once a file, and clients whose test rows others train
    on. UserError, one line, for what the user can fix.
    """
    deal = choose(data.partition, PARTITIONERS, "data.partition")
    if bool(data.clients) == bool(data.source):
        which = "only one" if data.clients else "one"
        raise UserError(f"data: set {which} of 'clients' and 'source'")
    if data.clients:
        reads = _reads(data.clients, "data.clients", data)
    else:
        pooled = _pooled(_reads(data.source, "data.source", data))
        reads = _dealt(pooled, deal, data)
    for name in data.include:
        if name not in reads:
            known = f"clients: {', '.join(sorted(reads))}"
            raise UserError(f"data.include: no client '{name}' ({known}){nearest(name, reads)}")
    clients = [_client(name, reads[name](), data) for name in sorted(set(data.include) or reads)]
    _check_left_out(data, [client.client_id for client in clients])
    if shared := trained_elsewhere(clients, taking_part(clients, data)):
        of = ", ".join(f"{name} ({count} rows)" for name, count in shared.items())
        warnings.warn(
            f"data: test rows with the prompt of another client's training row: {of}; "
            "drop one of the two, or their loss and score are too good",
            stacklevel=2,
        )
    return clients


def taking_part(clients: Sequence[ClientData], data: DataConfig) -> list[ClientData]:
    """Return the clients that are trained: all but those of `data.leave_out`."""
    return [client for client in clients if client.client_id not in data.leave_out]


def load_one_client(data: DataConfig, path: str, name: str) -> ClientData:
    """Return what the site called `name` holds, split as by `load_clients`, and read nothing else.

    `path` is one file or hub data set, whatever its own name; or a folder or embedded set, of which
    the part called `name` is taken.
    """
    reads = _reads(path, "data.clients", data)
    several = path.startswith(EMBEDDED) or Path(path).is_dir()
    if several and name not in reads:
        known = f"has {', '.join(sorted(reads))}"
        raise UserError(f"{path}: no client '{name}' ({known}){nearest(name, reads)}")
    read = reads[name] if several else next(iter(reads.values()))
    return _client(name, read(), data)


def _check_left_out(data: DataConfig, clients: Sequence[str]) -> None:
    for name in data.leave_out:
        if name not in clients:
            known = f"clients: {', '.join(clients)}"
            raise UserError(f"data.leave_out: no client '{name}' ({known}){nearest(name, clients)}")
    if set(data.leave_out) >= set(clients):
        raise UserError("data.leave_out: leaves no client to train; name fewer")


def _client(name: str, examples: Sequence[Example], data: DataConfig) -> ClientData:
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name) or len(name) > MAX_NAME:
        allowed = f"at most {MAX_NAME} letters, digits and ._- with no dot in front"
        raise UserError(f"client name {shorten(name)!r} cannot name a folder; use {allowed}")
    rows, most, seed = _with_unique_ids(examples), data.max_test_examples, data.seed
    rest, test = split(rows, data.test_fraction, seed, 0, most, name)
    key, share = "data.validation_fraction", data.validation_fraction
    rest, validation = split(rest, share, seed_for(seed, "validation"), 0, most, name, key)
    train, _ = split(rest, 0.0, seed, data.max_examples, client=name)
    return ClientData(name, tuple(train), (), tuple(test), tuple(validation))


def _with_unique_ids(examples: Iterable[Example]) -> list[Example]:
    """Call the second example of one id `id-2`, the third `id-3`, past the ids in use."""
    examples = list(examples)
    taken = {example.id for example in examples}
    if len(taken) == len(examples):
        return examples
    copies: Counter[str] = Counter()
    unique = []
    for example in examples:
        copies[example.id] += 1
        if copies[example.id] > 1:
            while f"{example.id}-{copies[example.id]}" in taken:
                copies[example.id] += 1
            example = replace(example, id=f"{example.id}-{copies[example.id]}")
            taken.add(example.id)
        unique.append(example)
    return unique


def _pooled(reads: Mapping[str, Read]) -> list[Example]:
    default = {name: name if len(reads) > 1 else "" for name in reads}
    return [
        replace(example, category=example.category or default[name])
        for name, read in reads.items()
        for example in read()
    ]


def _dealt(examples: Sequence[Example], deal: Partitioner, data: DataConfig) -> dict[str, Read]:
    groups = prompt_groups(examples)
    parts = deal([examples[group[0]] for group in groups], data)
    width = max(2, len(str(len(parts) - 1)))
    dealt: dict[str, Read] = {}
    for number, part in enumerate(parts):
        indices = sorted(index for group in part for index in groups[group])
        dealt[f"client-{number:0{width}d}"] = partial(list, [examples[i] for i in indices])
    return dealt


def _reads(specs: str | Sequence[str], key: str, data: DataConfig) -> dict[str, Read]:
    """Return name -> how to read it, for each file or set that `specs` name."""
    reads: dict[str, Read] = {}
    origins: dict[str, str] = {}
    for spec in [specs] if isinstance(specs, str) else specs:
        for name, origin, read in _named(spec, key, data):
            if name in reads:
                both = f"{origins[name]} and {origin}"
                raise UserError(f"{key}: two are called '{name}': {both}; rename or drop one")
            reads[name], origins[name] = read, origin
    return reads


def _named(spec: str, key: str, data: DataConfig) -> list[tuple[str, str, Read]]:
    """Return (name, where it comes from, how to read it) for what one entry stands for."""
    if spec.startswith(EMBEDDED):
        from fedsdr.data.embedded import EMBEDDED_SETS, embedded_rows

        name = spec.removeprefix(EMBEDDED)
        choose(name, EMBEDDED_SETS, key)
        embedded = embedded_rows(name, data.seed)
        return [(c, spec, partial(list, rows)) for c, rows in embedded.items()]
    if spec.startswith("hub:"):
        return [(hub_name(spec), spec, partial(_read_hub, spec, data.columns))]
    path = Path(spec)
    try:
        folder = path.is_dir()
        files = sorted(path.iterdir()) if folder else [path]
        missing = not path.exists()
    except OSError as error:  # a name that is too long, a folder without the right to read
        raise UserError(f"{key}: {shorten(spec)}: {error.strerror}") from error
    if missing:
        raise UserError(f"{key}: no such file or folder: {path}")
    if folder:  # what is no regular file is refused when it is read
        files = [p for p in files if p.suffix.lower() in READERS and not p.name.startswith(".")]
    if not files:
        raise UserError(f"{key}: no {', '.join(READERS)} file in the folder {path}")
    return [(file.stem, str(file), partial(_read_file, file, data.columns)) for file in files]


def _read_file(path: Path, columns: Columns) -> list[Example]:
    rows = ((place(path, number), row) for number, row in read_rows(path))
    return _read_examples(rows, str(path), columns)


def _read_hub(spec: str, columns: Columns) -> list[Example]:
    rows = ((f"{spec}, row {number}", row) for number, row in read_hub_rows(spec))
    return _read_examples(rows, spec, columns)


def _read_examples(
    rows: Iterable[tuple[str, dict[str, Any]]], origin: str, columns: Columns
) -> list[Example]:
    """Read rows with their places, and warn of the columns that are not read."""
    examples: list[Example] = []
    unread: Counter[str] = Counter()
    for where, row in rows:
        examples.append(example_from_row(row, where, columns))
        unread.update(unread_columns(row, columns))
    if unread:
        named = ", ".join(f"{name} ({count} rows)" for name, count in sorted(unread.items()))
        why = "; of preference data the chosen answers are trained" if REJECTED in unread else ""
        warnings.warn(f"{origin}: columns that are not read: {named}{why}", stacklevel=2)
    return examples


def shorten(text: str) -> str:
    """Return at most 100 characters of a text for a message."""
    return text if len(text) <= 100 else f"{text[:100]}..."
