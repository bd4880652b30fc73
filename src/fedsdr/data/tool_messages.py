"""The messages with tools behind the turns of a row, as `apply_chat_template` takes them.

`Turn.tool_messages` is JSON of {"messages": [...], "tools": [...]}. Messages are in OpenAI's form:
an assistant's `tool_calls`, whose arguments are objects, and one of role `tool` for each result.
The tools are at the system turn. A turn without any of these is one message of its role and text.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fedsdr.data.answer_parsing import parse_call
from fedsdr.data.tool_calls import answer_text, read_answer
from fedsdr.types import Turn

Message = dict[str, Any]


def turn_messages(messages: Sequence[Message], tools: Sequence[Any] = ()) -> str:
    """Return the `tool_messages` of a turn."""
    return json.dumps({"messages": messages} | ({"tools": tools} if tools else {}))


def messages_of(turns: Sequence[Turn]) -> tuple[list[Message], list[Any] | None]:
    """Return the messages of a conversation and its tools, None without tools."""
    messages: list[Message] = []
    tools = None
    for turn in turns:
        found = json.loads(turn.tool_messages) if turn.tool_messages else {}
        messages += found.get("messages", plain_messages([turn]))
        tools = found.get("tools", tools)
    return messages, tools


def plain_messages(turns: Sequence[Turn]) -> list[Message]:
    """Return a message for each turn, with tools, calls and results as text."""
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def answer_message(text: str) -> Message:
    """Return the assistant message that an answer is."""
    content, calls = read_answer(text)
    return {"role": "assistant", "content": content} | ({"tool_calls": calls} if calls else {})


def one_answer(messages: Sequence[Message], text: str) -> list[Message]:
    """Return neighbouring messages of the assistant, joined as `text`, as one; [] where something
    follows a call."""
    *before, last = messages
    calls = last.get("tool_calls", [])
    if not before:
        return [last]
    if not calls or any("tool_calls" in message for message in before):
        return []
    content = text.removesuffix(answer_text("", calls)).removesuffix("\n")
    return [last | {"content": content}]


def with_answer(turn: Turn, text: str) -> Turn:
    """Return an assistant turn with another text, whose calls are for the chat template too.

    A call that is only written otherwise, as `name(key=value)`, stays in the form of the turn.
    """
    if not turn.tool_messages:
        return replace(turn, content=text)
    message = answer_message(text)
    same = "tool_calls" not in message and parse_call(text) == parse_call(turn.content) is not None
    if same or text == turn.content:
        return turn
    return Turn(turn.role, text, turn_messages([message]))


def in_form_of(tool_messages: str, answer: str) -> str:
    """Return a model's answer in the form of the rows, if the row's answer has calls."""
    return answer_text(*read_answer(answer)) if tool_messages else answer
