"""Rows -> `Example`. The columns of each row decide its format, never the file's name.

Formats, tried in the order of `FORMATS` (null and NaN count as missing):

    conversations, chosen                preference data of LLaMA-Factory
    messages or conversations            turns of role/content (OpenAI) or from/value (ShareGPT)
    instruction, [input], output         Alpaca
    instruction, [context], response     Dolly
    prompt, completion                   TRL; each may be text or a list of turns
    prompt or instruction, chosen        preference data: the chosen answer is read
    chosen                               turns up to the chosen answer
    question, answer

Every format may have `id`, `category`, `system` (the first turn) and `tools` (which join the system
turn, tool_calls.py); those without turns may have `history`, the earlier turns as [user, assistant]
pairs. `[data.columns]` gives other names. `unread_columns` names what is not read. What becomes of
turns: turns.py.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from fedsdr.data.tool_calls import read_tools, tools_text
from fedsdr.data.tool_messages import messages_of, turn_messages
from fedsdr.data.turns import (
    CALLS,
    OF_RESULTS,
    RESULTS,
    Placed,
    Row,
    are_turns,
    conversation,
    history_turns,
    placed_turns,
    present,
    text_of,
    turn_keys,
)
from fedsdr.errors import UserError
from fedsdr.types import Example, Turn


@dataclass(frozen=True)
class Format:
    """The columns that hold an example: a prompt and a response, or the turns of a conversation.

    A prompt or response may be turns too; then both together are the conversation.
    """

    prompt: str = ""
    response: str = ""
    turns: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.turns,) if self.turns else (self.prompt, self.response)


FORMATS: dict[str, Format] = {
    "ShareGPT preferences": Format("conversations", "chosen"),
    "OpenAI": Format(turns="messages"),
    "ShareGPT": Format(turns="conversations"),
    "Alpaca": Format("instruction", "output"),
    "Dolly": Format("instruction", "response"),
    "completion": Format("prompt", "completion"),
    "preferences": Format("prompt", "chosen"),
    "Alpaca preferences": Format("instruction", "chosen"),
    "chosen turns": Format(turns="chosen"),
    "question": Format("question", "answer"),
}
INPUTS = ("input", "context")  # the first that is not empty
COMMON = ("id", "category", "system", "tools")
REJECTED = "rejected"  # of preference data, which says nothing to a supervised loss
Columns = Mapping[Any, str]  # [data.columns]: our name of a column -> the row's
NO_COLUMNS: Columns = {}


@dataclass(frozen=True)
class _Layout:
    """Where a row has what: its format, and the columns beside it by our name."""

    form: Format
    names: Mapping[str, str]

    def text(self, row: Row, name: str, where: str) -> str:
        return text_of(row, self.names[name], where)


def example_from_row(row: Row, where: str, columns: Columns = NO_COLUMNS) -> Example:
    """Return the example that a row holds. UserError, beginning with `where`, if it holds none.

    Text is kept as it is, white space included. A row without an id is named by its content: the
    first 16 hex digits of SHA-256 over its turns.
    """
    values = present(row)
    layout = _layout_of(row, values, columns, where)
    form, tools = layout.form, values.get(layout.names["tools"])
    if isinstance(tools, str) and not tools.strip():
        tools = None
    tools = read_tools(tools, f"{where}: '{layout.names['tools']}'")
    system = layout.text(values, "system", where)
    items = _turns_of(values, form, where)
    if items is not None:
        turns = conversation(items, f"{where}: '{form.columns[-1]}'", tools=bool(tools))
        if system.strip() and turns[0].role == "system":
            raise UserError(
                f"{where}: '{layout.names['system']}' and a system turn in '{form.columns[0]}'; "
                "drop one of them"
            )
        if turns[0].role == "system":
            system = turns.pop(0).content
        *earlier, asked, answered = turns
        instruction, given, response = asked.content, "", answered.content
        last = asked.tool_messages, answered.tool_messages
    else:
        history = layout.names["history"]
        earlier = history_turns(values.get(history) or (), f"{where}: '{history}'")
        instruction, given, response = _texts_of(values, layout, where)
        last = "", ""
    before = (*_system_turns(system, tools), *earlier)
    return Example(
        id=layout.text(values, "id", where) or _content_id(before, instruction, given, response),
        instruction=instruction,
        input=given,
        response=response,
        category=layout.text(values, "category", where).strip(),
        history=before,
        tool_messages=last,
    )


def _system_turns(system: str, tools: Sequence[Any]) -> list[Turn]:
    """Return the system turn, with the tools; [] without both."""
    own = [{"role": "system", "content": system}] if system.strip() else []
    text = "\n\n".join([*(m["content"] for m in own), *filter(None, [tools_text(tools)])])
    return [Turn("system", text, turn_messages(own, tools) if tools else "")] if text else []


def unread_columns(row: Row, columns: Columns = NO_COLUMNS) -> set[str]:
    """Return the columns with content that `example_from_row` does not read from this row.

    Keys of turns are named as `messages[].weight`.
    """
    values = present(row)
    layout = _layout_of(row, values, columns, "")
    form, names = layout.form, layout.names
    items = _turns_of(values, form, "")
    beside = (*COMMON, "history", "input") if items is None else COMMON
    read = {*form.columns, *(names[name] for name in beside)}
    unread = {name for name in values.keys() - read if values[name] not in ("", [], {}, ())}
    for place, item in items or ():
        keys = {key for key, value in item.items() if value not in (None, "", [], {})}
        column = place.split("'")[1]
        role, text = turn_keys(item) or ("", "")
        known = {role, text, *CALLS, *(OF_RESULTS if item.get(role) in RESULTS else ())}
        unread |= {f"{column}[].{key}" for key in keys - known}
    return unread


def row_from_example(example: Example) -> dict[str, Any]:
    """Return a row that `example_from_row` reads as this example."""
    row: dict[str, Any] = {"id": example.id}
    if example.category:
        row["category"] = example.category
    asked, answered = example.tool_messages
    last = Turn("user", example.instruction, asked), Turn("assistant", example.response, answered)
    messages, tools = messages_of((*example.history, *last))
    row |= {"tools": tools} if tools else {}
    turns = list(example.history)
    before = messages_of([turns.pop(0)])[0] if turns and turns[0].role == "system" else []
    system = "".join(message["content"] for message in before)
    if example.input or not (example.history or answered):
        pairs = [[u.content, a.content] for u, a in zip(turns[::2], turns[1::2], strict=True)]
        row |= {"instruction": example.instruction, "input": example.input}
        row |= {"output": example.response}
        return row | ({"system": system} if system else {}) | ({"history": pairs} if pairs else {})
    return row | {"messages": messages}


def _layout_of(row: Row, values: Mapping[str, Any], columns: Columns, where: str) -> _Layout:
    """Return the layout of a row; `values` are its columns that have a value."""
    forms = _forms(columns)
    same = {name: name for name in (*COMMON, "history")}
    names = same | {"input": _input_column(values)} | dict(columns)
    for form in forms:
        if all(name in values for name in form.columns):
            return _Layout(form, names)
    found = shorten(", ".join(map(str, row)) or "none", 300)  # on one line
    known = "; ".join(", ".join(form.columns) for form in forms)
    for form in forms:
        if form.prompt and form.prompt in values:
            raise UserError(
                f"{where}: row without a response: '{form.response}' is missing or null "
                f"(columns: {found}; known formats: {known})"
            )
    raise UserError(
        f"{where}: columns {found} fit no format (known: {known}; others: name them in "
        "[data.columns])"
    )


def _forms(columns: Columns) -> list[Format]:
    """Return the formats to try: the one that `[data.columns]` describes, else those known."""
    given = [name for name in ("prompt", "response", "messages") if name in columns]
    if not given:
        return list(FORMATS.values())
    if given == ["messages"]:
        return [Format(turns=columns["messages"])]
    if given == ["prompt", "response"]:
        return [Format(columns["prompt"], columns["response"])]
    raise UserError(
        f"data.columns: has {' and '.join(given)}; name prompt and response, or messages alone"
    )


def _turns_of(values: Mapping[str, Any], form: Format, where: str) -> Placed | None:
    """Return the turns of a row, None where prompt and response are texts."""
    if form.turns:
        return placed_turns(values[form.turns], f"{where}: '{form.turns}'")
    prompt, response = values[form.prompt], values[form.response]
    if not (are_turns(prompt) or are_turns(response)):
        return None
    at = [f"{where}: '{name}'" for name in form.columns]
    response = [response] if isinstance(response, Mapping) else response
    if are_turns(response):
        after = placed_turns(response, at[1])
    else:
        after = [(at[1], {"role": "assistant", "content": response})]
    if are_turns(prompt):
        return [*placed_turns(prompt, at[0]), *after]
    if any(_asks(item) for _, item in after):
        return after  # the chosen conversation begins with the prompt
    return [(at[0], {"role": "user", "content": prompt}), *after]


def _asks(item: Any) -> bool:
    keys = turn_keys(item) if isinstance(item, Mapping) else None
    return keys is not None and item[keys[0]] in ("user", "human")


def _texts_of(values: Mapping[str, Any], layout: _Layout, where: str) -> tuple[str, str, str]:
    """Return instruction, input and response; UserError for those that are blank."""
    form = layout.form
    instruction, response = (text_of(values, name, where) for name in form.columns)
    given = layout.text(values, "input", where)
    if not response.strip():
        raise UserError(
            f"{where}: the response in '{form.response}' is blank; fill it or drop the row"
        )
    if not (instruction + given).strip():
        raise UserError(f"{where}: '{form.prompt}' is blank; fill it or drop the row")
    return instruction, given, response


def _input_column(values: Mapping[str, Any]) -> str:
    return next((name for name in INPUTS if values.get(name)), INPUTS[0])


def _content_id(history: Sequence[Turn], *texts: str) -> str:
    content = json.dumps([[[turn.role, turn.content] for turn in history], *texts])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
