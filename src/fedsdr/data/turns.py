"""Lists of turns -> a conversation that every chat template accepts.

An optional system turn comes first, then user and assistant turns alternate:
- results of tools, and system turns after the first message, become user turns, since the model is
  shown them; function calls become assistant turns;
- neighbours of one role are joined by an empty line, written results of tools by a line break;
- assistant turns before any user turn, and all turns after the last assistant turn, are dropped.

Structured calls become the text that Hermes and Qwen models write (tool_calls.py). A row that has
some, or a list of tools, has its results written in the same way. The messages stay beside the text
(tool_messages.py).
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from textwrap import shorten
from typing import Any, Literal

from fedsdr.data.tool_calls import (
    RESULT,
    Call,
    answer_text,
    printable_texts,
    read_calls,
    result_text,
)
from fedsdr.data.tool_messages import messages_of, one_answer, turn_messages
from fedsdr.errors import UserError, nearest
from fedsdr.types import Turn

Row = Mapping[str, Any]
Placed = list[tuple[str, Any]]  # values of a row, each with how errors name its place
TURN_KEYS = (("role", "content"), ("from", "value"))
RESULTS = ("tool", "function", "observation")
CALL = "function_call"
Role = Literal["system", "user", "assistant"]
ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", *RESULTS), "user"),
    **dict.fromkeys(("assistant", "gpt", CALL), "assistant"),
}
CALLS = ("tool_calls", CALL)  # keys of a turn: what the assistant says beside its text
OF_RESULTS = ("name", "tool_call_id")  # keys of a result, which some chat templates write


def present(row: Row) -> dict[str, Any]:
    """Return the columns that have a value."""
    # NaN, the only value that differs from itself, is how data frames write a missing text.
    return {name: value for name, value in row.items() if value is not None and value == value}


def text_of(row: Row, name: str, where: str) -> str:
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


def listed(value: Any, where: str, what: str) -> Sequence[Any]:
    """Return a list, which a csv file can hold only as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise UserError(f"{where} is text but not JSON; write a list of {what}") from None
    if not isinstance(value, list | tuple):
        raise UserError(f"{where} must be a list of {what}, not {type(value).__name__}")
    return value


def placed_turns(value: Any, where: str) -> Placed:
    """Return the turns of a list with the place of each."""
    items = listed(value, where, "turns")
    return [(f"{where} turn {number}", item) for number, item in enumerate(items, 1)]


def are_turns(value: Any) -> bool:
    """Return whether a value is one turn or a list of turns."""
    items = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(item, Mapping) and turn_keys(item) for item in items)


def history_turns(value: Any, where: str) -> list[Turn]:
    """Read [[user, assistant], ...]."""
    turns = []
    for number, pair in enumerate(listed(value, where, "[user, assistant] pairs"), 1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise UserError(f"{where} entry {number}: expected a [user, assistant] pair")
        said = dict(zip(("user", "assistant"), pair, strict=True))
        texts = [text_of(said, role, f"{where} entry {number}") for role in said]
        if not all(text.strip() for text in texts):
            raise UserError(f"{where} entry {number}: a turn without text; fill it or drop it")
        turns += [Turn("user", texts[0]), Turn("assistant", texts[1])]
    return turns


def conversation(items: Placed, where: str, *, tools: bool) -> list[Turn]:
    """Return an optional system turn, then alternating user and assistant turns.

    `tools`: the row has a list of tools. UserError, beginning with the place.
    """
    as_results = tools or any(isinstance(item, Mapping) and has_calls(item) for _, item in items)
    turns: Placed = []
    for place, item in items:
        turn = _turn(item, place, as_results)
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
    joined = list(_joined(turn for _, turn in turns))
    if tools or any(turn.tool_messages for turn in joined if turn.role == "assistant"):
        return joined
    return [replace(turn, tool_messages="") for turn in joined]  # results of calls that are dropped


def turn_keys(item: Row) -> tuple[str, str] | None:
    """Return the keys of a turn's role and text."""
    return next((keys for keys in TURN_KEYS if keys[0] in item), None)


def has_calls(item: Row) -> bool:
    """Return whether the turn has structured calls."""
    return any(item.get(key) for key in CALLS)


def _joined(turns: Iterator[Turn]) -> Iterator[Turn]:
    """Join neighbours of one role by an empty line, results of tools by a line break."""
    for role, neighbours in itertools.groupby(turns, lambda turn: turn.role):
        group = list(neighbours)
        first, *others = (turn.content for turn in group)
        parts = [("\n" if text.startswith(RESULT) else "\n\n") + text for text in others]
        text = "".join([first, *parts])
        messages = messages_of(group)[0] if any(turn.tool_messages for turn in group) else []
        if messages and role == "assistant":
            messages = one_answer(messages, text)
        yield Turn(role, text, turn_messages(messages) if messages else "")


def _turn(item: Any, where: str, tools: bool) -> Turn:
    keys = turn_keys(item) if isinstance(item, Mapping) else None
    if keys is None:
        raise UserError(f"{where}: expected an object with role/content or from/value")
    role = str(item[keys[0]])
    if role not in ROLES:
        known = f"unknown role '{shorten(role, 40)}' (known: {', '.join(ROLES)})"
        raise UserError(f"{where}: {known}{nearest(role, ROLES)}")
    text = text_of(present(item), keys[1], where)
    if has_calls(item):
        if ROLES[role] != "assistant":
            raise UserError(f"{where}: a call in a {role} turn; only the assistant calls tools")
        given = [read_calls(item[key], f"{where}: '{key}'") for key in CALLS if item.get(key)]
        return _call_turn(text, *given)
    if tools and role == CALL:
        return _call_turn("", read_calls(text, f"{where}: '{keys[1]}'"))
    if tools and role in RESULTS:
        result = {"role": "tool", **printable_texts(item, *OF_RESULTS), "content": text}
        return Turn("user", result_text(text), turn_messages([result]))
    return Turn(ROLES[role], text)


def _call_turn(text: str, *given: list[Call]) -> Turn:
    content, calls = text if text.strip() else "", list(itertools.chain(*given))
    said = "\n".join([*filter(None, [content]), *(answer_text("", part) for part in given)])
    message = {"role": "assistant", "content": content, "tool_calls": calls}
    return Turn("assistant", said, turn_messages([message]) if calls else "")
