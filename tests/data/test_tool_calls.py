"""Tools, calls and results are written as the chat template of Qwen writes them."""

import json

import pytest
from tiny_tokenizers import tiny_tokenizer

from fedsdr.data.chat_templates import turns_of
from fedsdr.data.formats import example_from_row, unread_columns
from fedsdr.errors import UserError

# The part of Qwen3's template (Apache-2.0) that writes tools, calls and results.
QWEN = """\
{%- if tools %}{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- "# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\nYou are provided with function signatures within <tools></tools> XML tags:\\n<tools>" }}
{%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
{{- "\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\\n<tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\\n</tool_call><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}
{{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' + message.content }}
{%- for tool_call in message.tool_calls %}
{%- if (loop.first and message.content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
{%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
{{- '<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
{{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{%- if loop.first or (messages[loop.index0 - 1].role != 'tool') %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>' }}
{%- if loop.last or (messages[loop.index0 + 1].role != 'tool') %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- endif %}{%- endfor %}"""  # noqa: E501
TOOLS = [
    {"type": "function", "function": {"name": "rate", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "höhe", "parameters": {"type": "object"}}},
]
CALLS = [
    {"id": "1", "type": "function",
     "function": {"name": "rate", "arguments": {"bank": "Æ", "years": 3.5}}},
    {"id": "2", "type": "function", "function": {"name": "höhe", "arguments": {}}},
]  # fmt: skip
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Rate and height?"},
    {"role": "assistant", "content": "I look.", "tool_calls": CALLS},
    {"role": "tool", "content": "3 %"},
    {"role": "tool", "content": "12 m"},
    {"role": "assistant", "content": "", "tool_calls": CALLS[:1]},
    {"role": "tool", "content": "4 %"},
    {"role": "assistant", "content": "4 % and 12 m."},
]


@pytest.mark.parametrize("system", [True, False])
def test_a_conversation_with_calls_is_the_text_of_the_models_template_given_the_tools(system):
    tokenizer = tiny_tokenizer(chat_template=QWEN)
    messages = MESSAGES if system else MESSAGES[1:]
    expected = tokenizer.apply_chat_template(messages, tools=TOOLS, tokenize=False)
    example = example_from_row({"messages": messages, "tools": TOOLS}, "row 1")
    ours = [{"role": turn.role, "content": turn.content} for turn in turns_of(example)]
    assert tokenizer.apply_chat_template(ours, tokenize=False) == expected


def test_tools_and_arguments_written_as_json_text_are_the_same():
    calls = [
        call
        | {"function": call["function"] | {"arguments": json.dumps(call["function"]["arguments"])}}
        for call in CALLS
    ]
    messages = [m | {"tool_calls": calls} if m["content"] == "I look." else m for m in MESSAGES]
    row = {"messages": messages, "tools": json.dumps(TOOLS)}
    assert example_from_row(row, "") == example_from_row({"messages": MESSAGES, "tools": TOOLS}, "")
    assert unread_columns(row) == set()


def test_calls_of_llama_factory_and_of_the_older_openai_form_are_the_same():
    call = {"name": "rate", "arguments": {"bank": "A"}}
    old = [
        {"role": "user", "content": "Rate?"},
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "content": "3 %"},
        {"role": "assistant", "content": "3 %."},
    ]
    factory = [
        {"from": "human", "value": "Rate?"},
        {"from": "function_call", "value": json.dumps(call)},
        {"from": "observation", "value": "3 %"},
        {"from": "gpt", "value": "3 %."},
    ]
    tools = json.dumps(TOOLS)
    assert example_from_row({"messages": old, "tools": tools}, "") == example_from_row(
        {"conversations": factory, "tools": tools}, ""
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tool_calls": [{"arguments": {}}]}, "turn 3: 'tool_calls' has a call without a name"),
        ({"tool_calls": [{"name": "f", "arguments": "x"}]}, "the arguments of 'f' is text but not"),
        ({"tool_calls": [{"name": "f", "arguments": [1]}]}, "of 'f' must be a JSON object"),
        ({"tool_calls": [{"name": "f", "arguments": {"x": b"1"}}]}, "cannot be written as JSON"),
        ({"tool_calls": [{"name": "f", "arguments": {"x": "\ud83d"}}]}, "cannot be written as"),
        ({"tool_calls": 3}, "must be JSON, not int"),
        ({"role": "user"}, "a call in a user turn"),
    ],
)
def test_a_call_that_cannot_be_read_is_refused_in_one_line(change, said):
    messages = [m | change if m["content"] == "I look." else m for m in MESSAGES]
    with pytest.raises(UserError, match=said) as caught:
        example_from_row({"messages": messages}, "a.jsonl, line 7")
    assert str(caught.value).startswith("a.jsonl, line 7: 'messages' turn 3")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tools", ["hammer", "3", [1], 3])
def test_tools_that_are_something_else_are_refused(tools):
    row = {"instruction": "q", "output": "a", "tools": tools}
    with pytest.raises(UserError, match="'tools'"):
        example_from_row(row, "a.jsonl, line 7")
