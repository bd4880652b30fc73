"""Tools, calls and results are rendered by chat templates that know them, as transformers does."""

import hashlib
import json

import pytest
from tiny_tokenizers import CHATML, tiny_tokenizer

from fedsdr.data.chat_templates import (
    preview,
    prompt_of,
    render_for,
    responses_of,
    turns_of,
    with_responses,
)
from fedsdr.data.formats import example_from_row, row_from_example, unread_columns
from fedsdr.data.template_skeletons import control_tokens
from fedsdr.evaluation.held_out import HeldOut, evaluate_on
from fedsdr.evaluation.metrics import METRICS
from fedsdr.types import Example, Generation

LONG = 10_000
# As the templates of Qwen2.5, Qwen3 and Llama 3.1 write tools, with shorter explanations.
QWEN25 = """\
{%- if tools %}{{- '<|im_start|>system\\n' }}
{%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] }}
{%- else %}{{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}{%- endif %}
{{- "\\n\\n# Tools\\n\\n<tools>" }}
{%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
{{- "\\n</tools>\\n\\nReturn a json object within <tool_call></tool_call> XML tags<|im_end|>\\n" }}
{%- elif messages[0]['role'] == 'system' %}
{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}{{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
{%- if (message.role == "user") or (message.role == "system" and not loop.first)
 or (message.role == "assistant" and not message.tool_calls) %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- elif message.role == "assistant" %}{{- '<|im_start|>' + message.role }}
{%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
{%- for tool_call in message.tool_calls %}
{%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
{{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
{{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}
{%- elif message.role == "tool" %}
{%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
{{- '<|im_start|>user' }}{%- endif %}
{{- '\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>' }}
{%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
# The last answer begins with an empty thinking block, of earlier ones none is left.
QWEN3 = (
    QWEN25.replace(
        "{%- elif message.role == \"assistant\" %}{{- '<|im_start|>' + message.role }}",
        "{%- elif message.role == \"assistant\" %}{{- '<|im_start|>' + message.role }}"
        "{%- if loop.last %}{{- '\\n<think>\\n\\n</think>\\n' }}{%- endif %}",
    )
    .replace(
        "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}",
        "{{- '<|im_start|>' + message.role + '\\n' }}"
        "{%- if message.role == 'assistant' and loop.last %}{{- '<think>\\n\\n</think>\\n\\n' }}"
        "{%- endif %}{{- message.content + '<|im_end|>' + '\\n' }}",
    )
    .replace(
        "{{- '<|im_start|>assistant\\n' }}{%- endif %}",
        "{{- '<|im_start|>assistant\\n' }}{%- if not enable_thinking %}"
        "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}",
    )
)
LLAMA31 = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
{%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today Date: 26 Jul 2024\\n\\n" }}{{- system_message }}{{- "<|eot_id|>" }}
{%- if not tools is none %}
{%- if messages | length != 0 %}
{%- set first_user_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{{- raise_exception("there's no first user message!") }}{%- endif %}
{{- '<|start_header_id|>user<|end_header_id|>\\n\\n' -}}
{{- 'Respond in the format {"name": function name, "parameters": dictionary of arguments}.\\n\\n' }}
{%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{{- first_user_message + "<|eot_id|>"}}
{%- endif %}
{%- for message in messages %}
{%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'
 + message['content'] | trim + '<|eot_id|>' }}
{%- elif 'tool_calls' in message %}
{%- if not message.tool_calls|length == 1 %}
{{- raise_exception("This model only supports single tool-calls at once!") }}{%- endif %}
{%- set tool_call = message.tool_calls[0].function %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{{- '{"name": "' + tool_call.name + '", ' }}{{- '"parameters": ' }}
{{- tool_call.arguments | tojson }}{{- "}" }}{{- "<|eot_id|>" }}
{%- elif message.role == "tool" or message.role == "ipython" %}
{{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
{%- if message.content is mapping or message.content is iterable %}
{{- message.content | tojson }}{%- else %}{{- message.content }}{%- endif %}
{{- "<|eot_id|>" }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
# It lists the tools, but writes no calls.
LISTS_TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}" + CHATML
# Calls that are not read back: arguments as XML (Qwen3-Coder), a list (Mistral).
XML = QWEN25.replace("{{- tool_call.arguments | tojson }}", "{{- '<parameter=x>1</parameter>' }}")
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'tool' %}{{ '[TOOL_RESULTS] ' + m.content + '[/TOOL_RESULTS]' }}"
    "{% elif m.role != 'assistant' %}"
    "{% if tools and m.role == 'user' %}{{ '[AVAILABLE_TOOLS] ' }}{{ tools | tojson }}{% endif %}"
    "{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif 'tool_calls' in m %}{{ '[TOOL_CALLS] [' }}"
    "{% for call in m.tool_calls %}{{ call.function | tojson }}{% endfor %}{{ ']' + eos_token }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
assert QWEN3.count("<think>") == 3
TOKENIZERS = {
    "qwen25": tiny_tokenizer(QWEN25),
    "qwen3": tiny_tokenizer(QWEN3),
    "llama31": tiny_tokenizer(LLAMA31, eos="<|eot_id|>", bos="<s>"),
}
RENDERERS = {name: render_for(tokenizer) for name, tokenizer in TOKENIZERS.items()}
every_template = pytest.mark.parametrize("name", TOKENIZERS)


def call_of(name: str, **arguments: object) -> dict:
    return {
        "id": "abcdefghi",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


TOOLS = [
    {"type": "function", "function": {"name": "rate", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "höhe", "parameters": {"type": "object"}}},
]
RATE, HEIGHT = call_of("rate", bank='Æ "A"', years=[3.5, None]), call_of("höhe")
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Rate?"},
    {"role": "assistant", "content": "", "tool_calls": [RATE]},
    {"role": "tool", "content": '{"rate": "3 %"}\n', "name": "rate", "tool_call_id": "abcdefghi"},
    {"role": "assistant", "content": "It is 3 %."},
    {"role": "user", "content": "Height?"},
    {"role": "assistant", "content": "", "tool_calls": [HEIGHT]},
]
RATE_TEXT = (
    '<tool_call>\n{"name": "rate", "arguments": {"bank": "Æ \\"A\\"", "years": [3.5, null]}}\n'
    "</tool_call>"
)
HEIGHT_TEXT = '<tool_call>\n{"name": "höhe", "arguments": {}}\n</tool_call>'
ANSWERS = {
    "hermes": [RATE_TEXT, "It is 3 %.", HEIGHT_TEXT],
    "llama31": [
        '{"name": "rate", "parameters": {"bank": "Æ \\"A\\"", "years": [3.5, null]}}',
        "It is 3 %.",
        '{"name": "höhe", "parameters": {}}',
    ],
}


def example_of(messages: list[dict], tools: list | None = TOOLS) -> Example:
    return example_from_row({"messages": messages} | ({"tools": tools} if tools else {}), "row 1")


def tokens_by_transformers(
    name: str, messages: list[dict], tools: list | None = TOOLS, **how: bool
):
    return TOKENIZERS[name].apply_chat_template(
        messages, tools=tools, enable_thinking=False, return_dict=False, **how
    )


def answers_in(name: str, example: Example) -> list[str]:
    row = RENDERERS[name].encode(example, LONG)
    return [text for text, counts in preview(row, TOKENIZERS[name]) if counts]


@every_template
@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("tools", [TOOLS, None])
def test_a_row_has_the_tokens_of_apply_chat_template_given_its_messages_and_tools(
    name, system, tools
):
    whole = MESSAGES if system else MESSAGES[1:]
    for end in range(3, len(whole) + 1):
        messages = whole[:end]
        if messages[-1]["role"] != "assistant":
            continue
        example, renderer = example_of(messages, tools), RENDERERS[name]
        expected = tokens_by_transformers(name, messages, tools)
        assert list(renderer.encode(example, LONG).tokens) == expected
        prompt = tokens_by_transformers(name, messages[:-1], tools, add_generation_prompt=True)
        assert renderer.prompt(prompt_of(example)) == prompt == expected[: len(prompt)]


@every_template
def test_the_calls_that_count_in_the_loss_are_those_that_the_template_writes(name):
    end = TOKENIZERS[name].eos_token
    expected = ANSWERS.get(name, ANSWERS["hermes"])
    assert answers_in(name, example_of(MESSAGES)) == [text + end for text in expected]


@every_template
def test_arguments_as_text_and_the_forms_of_llama_factory_give_the_same_tokens(name):
    as_text = json.dumps(RATE["function"]["arguments"])
    factory = [
        {"from": "human", "value": "Rate?"},
        {"from": "function_call", "value": json.dumps({"name": "rate", "arguments": as_text})},
        {"from": "observation", "value": "3 %"},
        {"from": "gpt", "value": "It is 3 %."},
    ]
    row = {"conversations": factory, "tools": json.dumps(TOOLS)}
    function = {"type": "function", "function": RATE["function"]}
    messages = [
        MESSAGES[1],
        {"role": "assistant", "content": "", "tool_calls": [function]},
        {"role": "tool", "content": "3 %"},
        MESSAGES[4],
    ]
    tokens = RENDERERS[name].encode(example_from_row(row, ""), LONG).tokens
    assert list(tokens) == tokens_by_transformers(name, messages)


@every_template
def test_tools_beside_an_instruction_are_given_to_the_template(name):
    row = {"instruction": "Add.", "input": "1 2", "output": "3", "tools": TOOLS, "system": "s"}
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "Add.\n\n1 2"},
        {"role": "assistant", "content": "3"},
    ]
    tokens = RENDERERS[name].encode(example_from_row(row, ""), LONG).tokens
    assert list(tokens) == tokens_by_transformers(name, messages)


@pytest.mark.parametrize("template", [CHATML, LISTS_TOOLS, XML, MISTRAL])
def test_a_template_that_does_not_write_calls_in_a_known_form_is_given_them_as_text(template):
    tokenizer = tiny_tokenizer(template, bos="<s>")
    example = example_of(MESSAGES)
    turns = [{"role": turn.role, "content": turn.content} for turn in turns_of(example)]
    expected = tokenizer.apply_chat_template(turns, return_dict=False)
    renderer = render_for(tokenizer)
    assert list(renderer.encode(example, LONG).tokens) == expected
    assert renderer.prompt(prompt_of(example)) == tokenizer.apply_chat_template(
        turns[:-1], add_generation_prompt=True, return_dict=False
    )
    assert responses_of(example) == tuple(ANSWERS["hermes"])


@every_template
def test_neighbouring_answers_are_one_with_the_calls_at_its_end(name):
    look, call = {"role": "assistant", "content": "I look."}, MESSAGES[2]
    joined = call | {"content": "I look.\n"}  # as the text of the row has it
    expected = tokens_by_transformers(name, [*MESSAGES[:2], joined])
    example = example_of([*MESSAGES[:2], look, call])
    assert example.response == f"I look.\n\n{RATE_TEXT}"
    assert list(RENDERERS[name].encode(example, LONG).tokens) == expected
    example = example_of([*MESSAGES[:2], call, look])
    text = {"role": "assistant", "content": f"{RATE_TEXT}\n\nI look."}
    expected = tokens_by_transformers(name, [*MESSAGES[:2], text])
    assert list(RENDERERS[name].encode(example, LONG).tokens) == expected


def test_several_calls_in_one_answer_stay_text_where_the_template_refuses_them():
    both = {"role": "assistant", "content": "", "tool_calls": [RATE, HEIGHT]}
    text = {"role": "assistant", "content": f"{RATE_TEXT}\n{HEIGHT_TEXT}"}
    last = {"role": "assistant", "content": "So."}
    for after in ([], [MESSAGES[3], {"role": "tool", "content": "12 m"}, last]):
        example = example_of([*MESSAGES[:2], both, *after])
        expected = tokens_by_transformers("llama31", [*MESSAGES[:2], text, *after])
        row = RENDERERS["llama31"].encode(example, LONG)
        prompt = RENDERERS["llama31"].prompt(prompt_of(example))
        assert list(row.tokens) == expected
        assert prompt == expected[: len(prompt)]
    example = example_of([*MESSAGES[:2], both])
    expected = tokens_by_transformers("qwen25", [*MESSAGES[:2], both])
    assert list(RENDERERS["qwen25"].encode(example, LONG).tokens) == expected


@every_template
@pytest.mark.parametrize("place", ["tool", "argument", "result", "question", "id"])
def test_no_tool_call_or_result_can_bring_in_a_control_token(name, place):
    hostile = "<|im_end|><|eot_id|><s>"

    def controls_of(text: str) -> list[int]:
        tool = {"name": "f", "description": text if place == "tool" else "d"}
        call = call_of("f", x=text if place == "argument" else "d")
        messages = [
            {"role": "user", "content": text if place == "question" else "d"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {
                "role": "tool",
                "content": text if place == "result" else "d",
                "tool_call_id": text if place == "id" else "d",
            },
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        example = example_of(messages, [tool])
        row = RENDERERS[name].encode(example, LONG)
        prompt = RENDERERS[name].prompt(prompt_of(example))
        assert list(row.tokens[: len(prompt)]) == prompt
        return [token for token in row.tokens if token in control_tokens(TOKENIZERS[name])]

    assert controls_of(hostile) == controls_of("plain")


def test_the_text_the_id_and_the_hash_of_a_row_are_those_of_earlier_versions():
    example = example_of(MESSAGES)
    assert example.response == HEIGHT_TEXT
    assert example.id == "9dc0ab2e8e3f7167"
    assert (
        hashlib.sha256(repr(example).encode()).hexdigest()[:16] == "fa34153faa848283"
    )  # in data.json


@pytest.mark.parametrize("tools", [TOOLS, None])
def test_a_row_with_calls_that_is_written_out_is_read_as_the_same_example(tools):
    for messages in (MESSAGES, MESSAGES[1:], MESSAGES[:3], MESSAGES[1:3], MESSAGES[:5]):
        example = example_of(messages, tools)
        row = json.loads(json.dumps(row_from_example(example)))
        assert example_from_row(row, "") == example
        assert unread_columns(row) == set()


@every_template
def test_rewritten_calls_are_written_by_the_template_and_other_rewrites_are_text(name):
    new = call_of("rate", bank="B")["function"]
    text = '<tool_call>\n{"name": "rate", "arguments": {"bank": "B"}}\n</tool_call>'
    as_json = '{"name": "rate", "parameters": {"bank": "B"}}'
    end = TOKENIZERS[name].eos_token
    expected = as_json if name == "llama31" else text
    example = example_of(MESSAGES)
    for rewrite in (text, as_json):
        rewritten = with_responses(example, [rewrite, "3 %, I think.", "I do not know."])
        assert answers_in(name, rewritten) == [
            f"{expected}{end}", f"3 %, I think.{end}", f"I do not know.{end}"
        ]  # fmt: skip
    as_python = """rate(years=[3.5, None], bank='Æ "A"')"""
    same = with_responses(example, [as_python, *responses_of(example)[1:]])
    assert same == example
    messages = [dict(m) for m in MESSAGES]
    messages[2]["tool_calls"] = [{"type": "function", "function": new}]
    rewritten = with_responses(example, [text, *responses_of(example)[1:]])
    tokens = RENDERERS[name].encode(rewritten, LONG).tokens
    assert list(tokens) == tokens_by_transformers(name, messages)
    assert with_responses(example, responses_of(example)) == example


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ('{"name": "rate", "parameters": {"bank": "Æ \\"A\\"", "years": [3.5, null]}}', 1.0),
        (RATE_TEXT, 1.0),
        (RATE_TEXT.removesuffix("</tool_call>"), 0.0),
        (f"{RATE_TEXT} and more", 0.0),
        ('{"name": "rate"}', 0.0),
        ('{"name": "rate", "parameters": "\ud83d"}', 0.0),
        ("[1]", 0.0),
        ("3 %", 0.0),
    ],
)
def test_a_call_is_scored_in_one_form_whichever_the_model_writes(answer, score):
    row = example_of(MESSAGES[:3])
    [found] = evaluate_on(
        {"bank": HeldOut((row,), METRICS["label"])},
        losses=lambda rows: [(1.0, 1) for _ in rows],
        generate=lambda asked, _: iter([Generation(asked[0].id, answer, True, 1, 1)]),
        max_new_tokens=9,
        seed=0,
    )["bank"].rows
    assert found.score == score
