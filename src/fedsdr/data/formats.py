"""Rows -> `Example`. A format is recognised by the columns of each row, never by a file's name.

Known layouts, tried in this order (`id` and `category` may be in any of them; other columns are
ignored; a null counts as a column that is not there):

    messages or conversations      turns of role/content (OpenAI) or from/value (ShareGPT)
    instruction, [input], output   Alpaca
    instruction, [context], response   Dolly
    prompt, completion

A conversation becomes alternating user and assistant turns, after an optional system turn, which
is what chat templates can write:
- results of tools, and system turns after the first message, are read as user turns: they are
  text that the model is shown; function calls are read as assistant turns;
- neighbours of one role are joined by an empty line;
- assistant turns before any user turn, and all turns after the last assistant one, are dropped.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any, Literal

from fedsdr.errors import UserError, nearest
from fedsdr.types import Example, Turn

CONVERSATIONS = ("messages", "conversations")
PAIRS = (("instruction", "output"), ("instruction", "response"), ("prompt", "completion"))
TURN_KEYS = (("role", "content"), ("from", "value"))
LAYOUTS = (
    "messages or conversations; instruction, [input], output; "
    "instruction, [context], response; prompt, completion"
)

ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "tool": "user",
    "function": "user",
    "observation": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
}


def example_from_row(row: Mapping[str, Any], where: str) -> Example:
    """Return the example that a row holds; UserError that begins with `where` if it holds none.

    Text is kept as it is, white space included. A row without an id is named by its content:
    the first 16 hex digits of SHA-256 over its turns.
    """
    # NaN, the only value that is not itself, is how data frames write a missing text.
    present = {name: value for name, value in row.items() if value is not None and value == value}
    conversation = next((name for name in CONVERSATIONS if name in present), None)
    if conversation:
        history, instruction, response = _conversation(present[conversation], conversation, where)
        given_input = ""
    else:
        prompt, answer = _pair(row, present, where)
        history = ()
        instruction = _text(present, prompt, where)
        given_input = _text(present, "input", where) or _text(present, "context", where)
        response = _text(present, answer, where)
        if not response.strip():
            raise UserError(
                f"{where}: the response in '{answer}' is blank; fill it or drop the row"
            )
        if not (instruction + given_input).strip():
            raise UserError(f"{where}: '{prompt}' is blank; fill it or drop the row")
    return Example(
        id=_text(present, "id", where) or _content_id(history, instruction, given_input, response),
        instruction=instruction,
        input=given_input,
        response=response,
        category=_text(present, "category", where).strip(),
        history=history,
    )


def row_from_example(example: Example) -> dict[str, Any]:
    """Return a row that `example_from_row` reads as this example."""
    named = {"id": example.id} | ({"category": example.category} if example.category else {})
    if not example.history:
        texts = {"instruction": example.instruction, "input": example.input}
        return named | texts | {"output": example.response}
    turns = (
        *example.history,
        Turn("user", example.instruction),
        Turn("assistant", example.response),
    )
    return named | {"messages": [{"role": t.role, "content": t.content} for t in turns]}


def _pair(row: Mapping[str, Any], present: Mapping[str, Any], where: str) -> tuple[str, str]:
    """Return the names of the prompt's and the response's column."""
    for prompt, answer in PAIRS:
        if prompt in present and answer in present:
            return prompt, answer
    columns = shorten(", ".join(map(str, row)) or "none", 300)  # also puts them on one line
    for prompt, answer in PAIRS:
        if prompt in present:
            missing = f"row without a response: '{answer}' is missing or null"
            raise UserError(f"{where}: {missing} (columns: {columns}; known layouts: {LAYOUTS})")
    raise UserError(f"{where}: columns {columns} fit no layout (known: {LAYOUTS})")


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    """Return a column as text, '' if it is not there. Numbers are written out."""
    value = row.get(name, "")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"{where}: '{name}' must be text, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: '{name}' has half of a surrogate pair; mend it") from None
    return value


def _conversation(value: Any, name: str, where: str) -> tuple[tuple[Turn, ...], str, str]:
    """Return the history, the last user message and the last assistant message."""
    if isinstance(value, str):  # a csv file can hold a conversation only as JSON
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise UserError(f"{where}: '{name}' is text but not JSON; write a list") from None
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise UserError(f"{where}: '{name}' must be a list of turns, not {type(value).__name__}")
    turns: list[Turn] = []
    for number, item in enumerate(value, 1):
        turn = _turn(item, f"{where}: '{name}' turn {number}")
        if turn.role == "system" and turns:
            turn = Turn("user", turn.content)
        if turn.role == "assistant" and all(earlier.role == "system" for earlier in turns):
            continue
        if turns and turns[-1].role == turn.role:
            turn = Turn(turn.role, f"{turns.pop().content}\n\n{turn.content}")
        turns.append(turn)
    while turns and turns[-1].role != "assistant":
        turns.pop()
    if not turns:
        raise UserError(f"{where}: '{name}' has no assistant turn that answers a user turn")
    if any(not turn.content.strip() for turn in turns if turn.role != "system"):
        hint = "fill it (tool_calls are not read: write the call as text) or drop the row"
        raise UserError(f"{where}: '{name}' has a turn without text; {hint}")
    history = tuple(turn for turn in turns[:-2] if turn.content.strip())
    return history, turns[-2].content, turns[-1].content


def _turn(item: Any, where: str) -> Turn:
    if isinstance(item, Mapping):
        for role_key, text_key in TURN_KEYS:
            if role_key in item:
                role = str(item[role_key])
                if role not in ROLES:
                    said = f"unknown role '{shorten(role, 40)}' (known: {', '.join(ROLES)})"
                    raise UserError(f"{where}: {said}{nearest(role, ROLES)}")
                present = {k: v for k, v in item.items() if v is not None}
                return Turn(ROLES[role], _text(present, text_key, where))
    raise UserError(f"{where}: expected an object with role/content or from/value")


def _content_id(history: Sequence[Turn], *texts: str) -> str:
    content = json.dumps([[[turn.role, turn.content] for turn in history], *texts])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
