"""Tools, calls and results as the text that the templates of Hermes and Qwen models write.

`apply_chat_template(messages, tools=...)` of such a model gives the same text, so a call is trained
as the model writes it, and servers read it with their "hermes" parser. Models that write calls in
another form need them as text in the data.
"""

import json
from collections.abc import Mapping
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


def tools_text(tools: Any, where: str) -> str:
    """Return the part of the system turn that lists the tools; "" for none.

    `tools` is a list of JSON schemas, or JSON text of one. UserError, beginning with `where`.
    """
    found = _json(tools, where) if tools else []
    found = [found] if isinstance(found, Mapping) else found
    if not isinstance(found, list | tuple) or not all(isinstance(t, Mapping) for t in found):
        raise UserError(f"{where} must be a list of tools, each a JSON object")
    lines = [_dumps(tool, where) for tool in found]
    return "\n".join([BEFORE_TOOLS, *lines, AFTER_TOOLS]) if lines else ""


def call_text(calls: Any, where: str) -> str:
    """Return calls as `<tool_call>` blocks, one below the other.

    A call is `{"name", "arguments"}`, in OpenAI's form inside `{"function": ...}`; `calls` is one,
    a list, or JSON text of them. Arguments may be JSON text. UserError, beginning with `where`.
    """
    found = _json(calls, where)
    blocks = []
    for call in [found] if isinstance(found, Mapping) else found or ():
        inner = call.get("function", call) if isinstance(call, Mapping) else {}
        name = inner.get("name") if isinstance(inner, Mapping) else None
        if not isinstance(name, str) or not name:
            raise UserError(f'{where} has a call without a name; write {{"name", "arguments"}}')
        arguments = _json(inner.get("arguments") or {}, f"{where}: the arguments of '{name}'")
        if not isinstance(arguments, Mapping):
            raise UserError(f"{where}: the arguments of '{name}' must be a JSON object")
        line = _dumps({"name": name, "arguments": arguments}, where)
        blocks.append(f"<tool_call>\n{line}\n</tool_call>")
    return "\n".join(blocks)


def result_text(result: str) -> str:
    """Return what a tool answered, as the model is shown it."""
    return f"{RESULT}\n{result}\n</tool_response>"


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
