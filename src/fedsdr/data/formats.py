"""Rows -> `Example`. The columns of each row decide its format, never the file's name.

Formats, tried in the order of `FORMATS` (null and NaN count as missing):

    messages or conversations            turns of role/content (OpenAI) or from/value (ShareGPT)
    instruction, [input], output         Alpaca
    instruction, [context], response     Dolly
    prompt, completion

Every format may have `id`, `category` and `system` (the first turn); those without turns may have
`history`, the earlier turns as [user, assistant] pairs. `unread_columns` names the others.

A conversation becomes alternating user and assistant turns after an optional system turn, which is
what chat templates accept:
- results of tools, and system turns after the first message, become user turns, since the model is
  shown them; function calls become assistant turns;
- neighbours of one role are joined by an empty line;
- assistant turns before any user turn, and all turns after the last assistant turn, are dropped.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from textwrap import shorten
from typing import Any, Literal

from fedsdr.errors import UserError, nearest
from fedsdr.types import Example, Turn

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """The columns that hold an example: a prompt and a response, or the turns of a conversation."""

    prompt: str = ""
    response: str = ""
    turns: str = ""


FORMATS: dict[str, Format] = {
    "OpenAI": Format(turns="messages"),
    "ShareGPT": Format(turns="conversations"),
    "Alpaca": Format("instruction", "output"),
    "Dolly": Format("instruction", "response"),
    "completion": Format("prompt", "completion"),
}
INPUTS = ("input", "context")  # the first that is not empty
COMMON = ("id", "category", "system")
TURN_KEYS = (("role", "content"), ("from", "value"))
Role = Literal["system", "user", "assistant"]
ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "tool", "function", "observation"), "user"),
    **dict.fromkeys(("assistant", "gpt", "function_call"), "assistant"),
}
CALLS = ("tool_calls", "function_call")  # keys of a turn: what the assistant says beside its text


def example_from_row(row: Row, where: str) -> Example:
    """Return the example that a row holds. UserError, beginning with `where`, if it holds none.

    Text is kept as it is, white space included. A row without an id is named by its content: the
    first 16 hex digits of SHA-256 over its turns.
    """
    present = _present(row)
    form = _format_of(row, present, where)
    system = _text(present, "system", where)
    history = [Turn("system", system)] if system.strip() else []
    if form.turns:
        turns = _conversation(present[form.turns], f"{where}: '{form.turns}'")
        if history and turns[0].role == "system":
            raise UserError(
                f"{where}: 'system' and a system turn in '{form.turns}'; drop one of them"
            )
        *earlier, asked, answered = turns
        instruction, given, response = asked.content, "", answered.content
    else:
        earlier = _history(present.get("history") or (), f"{where}: 'history'")
        instruction, response = (_text(present, n, where) for n in (form.prompt, form.response))
        given = _text(present, _input_column(present), where)
        if not response.strip():
            raise UserError(
                f"{where}: the response in '{form.response}' is blank; fill it or drop the row"
            )
        if not (instruction + given).strip():
            raise UserError(f"{where}: '{form.prompt}' is blank; fill it or drop the row")
    before = (*history, *earlier)
    return Example(
        id=_text(present, "id", where) or _content_id(before, instruction, given, response),
        instruction=instruction,
        input=given,
        response=response,
        category=_text(present, "category", where).strip(),
        history=before,
    )


def unread_columns(row: Row) -> set[str]:
    """Return the columns with content that `example_from_row` does not read from this row.

    Keys of turns are named as `messages[].weight`.
    """
    present = _present(row)
    form = _format_of(row, present, "")
    read = {*COMMON, form.turns, form.prompt, form.response}
    if not form.turns:
        read |= {"history", _input_column(present)}
    unread = {name for name in present.keys() - read if present[name] not in ("", [], {}, ())}
    for item in present[form.turns] if isinstance(present.get(form.turns), list | tuple) else ():
        keys = {key for key, value in item.items() if value not in (None, "", [], {})}
        unread |= {f"{form.turns}[].{key}" for key in keys - set(_turn_keys(item) or ())}
    return unread


def row_from_example(example: Example) -> dict[str, Any]:
    """Return a row that `example_from_row` reads as this example."""
    row: dict[str, Any] = {"id": example.id}
    if example.category:
        row["category"] = example.category
    system, turns = "", list(example.history)
    if turns and turns[0].role == "system":
        system = turns.pop(0).content
    if example.input or not example.history:
        pairs = [[u.content, a.content] for u, a in zip(turns[::2], turns[1::2], strict=True)]
        row |= {"instruction": example.instruction, "input": example.input}
        row |= {"output": example.response}
        return row | ({"system": system} if system else {}) | ({"history": pairs} if pairs else {})
    last = Turn("user", example.instruction), Turn("assistant", example.response)
    messages = [{"role": t.role, "content": t.content} for t in (*example.history, *last)]
    return row | {"messages": messages}


def _present(row: Row) -> dict[str, Any]:
    # NaN, the only value that differs from itself, is how data frames write a missing text.
    return {name: value for name, value in row.items() if value is not None and value == value}


def _format_of(row: Row, present: Row, where: str) -> Format:
    for form in FORMATS.values():
        if all(name in present for name in _columns(form)):
            return form
    columns = shorten(", ".join(map(str, row)) or "none", 300)  # on one line
    known = "; ".join(", ".join(_columns(form)) for form in FORMATS.values())
    for form in FORMATS.values():
        if form.prompt and form.prompt in present:
            raise UserError(
                f"{where}: row without a response: '{form.response}' is missing or null "
                f"(columns: {columns}; known formats: {known})"
            )
    raise UserError(f"{where}: columns {columns} fit no format (known: {known})")


def _columns(form: Format) -> tuple[str, ...]:
    return (form.turns,) if form.turns else (form.prompt, form.response)


def _input_column(present: Row) -> str:
    return next((name for name in INPUTS if present.get(name)), INPUTS[0])


def _text(row: Row, name: str, where: str) -> str:
    """Return a column as text, '' if it is missing. Numbers are written out."""
    value = row.get(name, "")
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        if not isinstance(value, int) and not math.isfinite(value):
            raise UserError(f"{where}: '{name}' is {value}, not a finite number")
        return str(value)
    if isinstance(value, list) and value and name == "content":  # OpenAI's parts of a content
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in value]
        if not all(isinstance(part, str) for part in parts):
            raise UserError(f"{where}: '{name}' has a part that is not text; only text is read")
        value = "".join(map(str, parts))
    if not isinstance(value, str):
        raise UserError(f"{where}: '{name}' must be text, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: '{name}' has half of a surrogate pair; fix the text") from None
    return value


def _listed(value: Any, where: str, what: str) -> Sequence[Any]:
    """Return a list, which a csv file can hold only as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise UserError(f"{where} is text but not JSON; write a list of {what}") from None
    if not isinstance(value, list | tuple):
        raise UserError(f"{where} must be a list of {what}, not {type(value).__name__}")
    return value


def _history(value: Any, where: str) -> list[Turn]:
    """Read [[user, assistant], ...]."""
    turns = []
    for number, pair in enumerate(_listed(value, where, "[user, assistant] pairs"), 1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise UserError(f"{where} entry {number}: expected a [user, assistant] pair")
        said = dict(zip(("user", "assistant"), pair, strict=True))
        texts = [_text(said, role, f"{where} entry {number}") for role in said]
        if not all(text.strip() for text in texts):
            raise UserError(f"{where} entry {number}: a turn without text; fill it or drop it")
        turns += [Turn("user", texts[0]), Turn("assistant", texts[1])]
    return turns


def _conversation(value: Any, where: str) -> list[Turn]:
    """Return an optional system turn, then alternating user and assistant turns."""
    turns: list[tuple[str, Turn]] = []  # with the place of each
    for number, item in enumerate(_listed(value, where, "turns"), 1):
        place = f"{where} turn {number}"
        turn = _turn(item, place)
        if turn.role == "system":
            if not turn.content.strip():
                continue
            turn = Turn("user", turn.content) if turns else turn
        if turn.role == "assistant" and (not turns or turns[-1][1].role == "system"):
            continue
        turns.append((place, turn))
    while turns and turns[-1][1].role != "assistant":
        turns.pop()
    if not turns:
        raise UserError(f"{where} has no assistant turn that answers a user turn")
    for place, turn in turns:
        if not turn.content.strip():
            raise UserError(f"{place} has no text; fill it or drop the row")
    return list(_joined(turn for _, turn in turns))


def _joined(turns: Iterator[Turn]) -> Iterator[Turn]:
    """Join neighbours of one role by an empty line."""
    for role, group in itertools.groupby(turns, lambda turn: turn.role):
        yield Turn(role, "\n\n".join(turn.content for turn in group))


def _turn_keys(item: Row) -> tuple[str, str] | None:
    return next((keys for keys in TURN_KEYS if keys[0] in item), None)


def _turn(item: Any, where: str) -> Turn:
    keys = _turn_keys(item) if isinstance(item, Mapping) else None
    if keys is None:
        raise UserError(f"{where}: expected an object with role/content or from/value")
    role = str(item[keys[0]])
    if role not in ROLES:
        known = f"unknown role '{shorten(role, 40)}' (known: {', '.join(ROLES)})"
        raise UserError(f"{where}: {known}{nearest(role, ROLES)}")
    for key in CALLS:
        if item.get(key):
            raise UserError(f"{where}: '{key}' is not read; write the call as text in '{keys[1]}'")
    return Turn(ROLES[role], _text(_present(item), keys[1], where))


def _content_id(history: Sequence[Turn], *texts: str) -> str:
    content = json.dumps([[[turn.role, turn.content] for turn in history], *texts])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
