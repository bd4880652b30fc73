"""Tools, calls and results as the text that the templates of Hermes and Qwen models write.

Rows have this text for every model: rewrites and scores compare answers in this form. Chat
templates that write tools themselves are given the messages instead (tool_messages.py).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fedsdr.errors import UserError, one_line

BEFORE_TOOLS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>"""
AFTER_TOOLS = """</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""
RESULT = "<tool_response>"
BEFORE_CALL, AFTER_CALL = "<tool_call>", "</tool_call>"
Call = dict[str, Any]  # OpenAI's: {"type", "function": {"name", "arguments"}}, perhaps "id"


def read_tools(tools: Any, where: str) -> list[Any]:
    """Return the JSON schemas of the tools: a list, or JSON text of one; [] for none.

    UserError, beginning with `where`.
    """
    found = _json(tools, where) if tools else []
    found = [found] if isinstance(found, Mapping) else found
    if not isinstance(found, list | tuple) or not all(isinstance(t, Mapping) for t in found):
        raise UserError(f"{where} must be a list of tools, each a JSON object")
    return [json.loads(_dumps(tool, where)) for tool in found]


def tools_text(tools: Sequence[Any]) -> str:
    """Return the part of the system turn that lists the tools; "" for none."""
    lines = [json.dumps(tool, ensure_ascii=False) for tool in tools]
    return "\n".join([BEFORE_TOOLS, *lines, AFTER_TOOLS]) if lines else ""


def read_calls(calls: Any, where: str) -> list[Call]:
    """Return calls in OpenAI's form, the arguments as an object.

    A call is `{"name", "arguments"}`, perhaps inside `{"function": ...}`; `calls` is one, a list,
    or JSON text of them. Arguments may be JSON text. UserError, beginning with `where`.
    """
    found = _json(calls, where)
    read: list[Call] = []
    for call in [found] if isinstance(found, Mapping) else found or ():
        inner = call.get("function", call) if isinstance(call, Mapping) else {}
        name = inner.get("name") if isinstance(inner, Mapping) else None
        if not isinstance(name, str) or not name:
            raise UserError(f'{where} has a call without a name; write {{"name", "arguments"}}')
        arguments = _json(inner.get("arguments") or {}, f"{where}: the arguments of '{name}'")
        if not isinstance(arguments, Mapping):
            raise UserError(f"{where}: the arguments of '{name}' must be a JSON object")
        function = json.loads(_dumps({"name": name, "arguments": arguments}, where))
        read.append(printable_texts(call, "id") | {"type": "function", "function": function})
    return read


def answer_text(content: str, calls: Sequence[Call]) -> str:
    """Return an answer with its calls as `<tool_call>` blocks, one below the other."""
    lines = [json.dumps(call["function"], ensure_ascii=False) for call in calls]
    blocks = [f"{BEFORE_CALL}\n{line}\n{AFTER_CALL}" for line in lines]
    return "\n".join([content, *blocks] if content.strip() else blocks)


def read_answer(text: str) -> tuple[str, list[Call]]:
    """Return the content and the calls of an answer: `<tool_call>` blocks at its end, or one call
    as JSON, which Llama models write. An answer in another form is all content."""
    content, *blocks = text.split(BEFORE_CALL)
    parts = [block.rstrip().removesuffix(AFTER_CALL) for block in blocks]
    if not blocks:
        content, parts = "", [text]
    elif any(AFTER_CALL not in block for block in blocks):
        return text, []
    try:
        found = [json.loads(part) for part in parts]
        calls = [
            {"name": one["name"], "arguments": one.get("arguments", one.get("parameters"))}
            for one in found
        ]
        if any(not isinstance(call["arguments"], Mapping) for call in calls):
            return text, []
        return content.removesuffix("\n"), read_calls(calls, "")
    except (ValueError, TypeError, KeyError, RecursionError, UserError):
        return text, []  # no call


def result_text(result: str) -> str:
    """Return what a tool answered, as the model is shown it."""
    return f"{RESULT}\n{result}\n</tool_response>"


def printable_texts(item: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """Return those keys of a turn or call that have a text of printable characters."""
    found = {key: item.get(key) for key in keys}
    return {
        key: text for key, text in found.items() if isinstance(text, str) and text.isprintable()
    }


def _dumps(value: Any, where: str) -> str:
    """Write JSON as the templates' `tojson` does."""
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:  # a date, half of a surrogate pair
        raise UserError(f"{where} cannot be written as JSON ({one_line(str(error))})") from None
    return text


def _json(value: Any, where: str) -> Any:
    """Return a value, read from JSON where it is text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise UserError(f"{where} is text but not JSON; write it as JSON") from None
    if not isinstance(value, Mapping | list | tuple):
        raise UserError(f"{where} must be JSON, not {type(value).__name__}")
    return value
