"""Chat templates run in a process of their own: they give what transformers gives, and neither
loops nor huge texts take the program's time and memory."""

import gc
import os
import resource
import time

import pytest
from tiny_tokenizers import (
    CHATML,
    CHATML_MARKED,
    GEMMA,
    LLAMA3,
    MISTRAL,
    PLAIN,
    QWEN3,
    SMOLLM2,
    tiny_tokenizer,
)

from fedsdr.data.bounded_template import BoundedTemplate, TemplateBoundError
from fedsdr.data.chat_templates import render_for
from fedsdr.errors import UserError

TURNS = [
    {"role": "user", "content": "  What is 7 + 8?\n"},
    {"role": "assistant", "content": "56 <|im_end|> \ud800 ü"},
    {"role": "user", "content": "Sure? {{ 1 + 1 }}"},
]
EXTRAS = (
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% if loop.index0 == 2 %}{% break %}"
    "{% endif %}{% set ns.n = ns.n + 1 %}{{ m | tojson }}{{ m | tojson(indent=2) }}{% endfor %}\n"
    "  {% if tools is none and not documents %}\n{{ ns.n }}{% endif %}\n{{ eos_token }}"
)
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
EXPLODING = {
    "loop": LOOP,
    "loop in a macro": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}"
    "{{ f(100) }}",
    "power": "{% set x = 10 %}{{ 10 ** (10 ** x) }}",
    "constant power": "{{ 10 ** (10 ** 10) }}",
    "text": "{{ 'a' * 10000000000 }}",
    "list": "{{ ([0] * 1000000000) | length }}",
    "width": "{{ '%9999999999d' % 1 }}",
    "centre": "{{ 'a' | center(9999999999) }}",
    "doubling": "{% set ns = namespace(s='a') %}{% for i in range(60) %}"
    "{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "nested lists": "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}"
    "{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
    "joined": "{{ (range(99999) | map('string') | list * 99999) | join }}",
}


@pytest.mark.parametrize(
    "source", [CHATML, CHATML_MARKED, SMOLLM2, LLAMA3, MISTRAL, GEMMA, QWEN3, PLAIN, EXTRAS]
)
@pytest.mark.parametrize("prompt", [True, False])
def test_the_text_is_that_of_transformers(source, prompt):
    source = "{% macro strftime_now(f) %}today{% endmacro %}" + source
    tokenizer = tiny_tokenizer(source, bos="<s>")
    template = BoundedTemplate(
        source,
        tokenizer.special_tokens_map | {"tools": None, "documents": None, "enable_thinking": False},
    )
    expected = tokenizer.apply_chat_template(
        TURNS, tokenize=False, add_generation_prompt=prompt, enable_thinking=False
    )
    assert template.render(messages=TURNS, add_generation_prompt=prompt) == expected


@pytest.mark.parametrize("kind", EXPLODING)
def test_a_template_that_loops_or_explodes_is_stopped(kind):
    template = BoundedTemplate(EXPLODING[kind], {}, seconds=1, memory=300 << 20)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises((TemplateBoundError, ValueError)):
        template.render(messages=TURNS)
    assert time.perf_counter() - began < 10  # on a busy machine
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_a_template_goes_on_after_a_rendering_that_was_stopped_and_its_process_ends_with_it():
    source = "{% if loops %}" + LOOP + "{% endif %}{{ text }}"
    template = BoundedTemplate(source, {}, seconds=1)
    with pytest.raises(TemplateBoundError, match=r"1 seconds or 1,024 MiB"):
        template.render(loops=True)
    assert template.render(text="a") == "a"
    assert template.render(text="b") == "b"
    gc.collect()
    children = set(_children())
    del template
    gc.collect()
    assert len(children - set(_children())) == 1


def test_a_text_of_10_mb_is_within_the_bounds():
    content = "ä" * 5_000_000
    template = BoundedTemplate("{{ messages[0]['content'] | trim }}", {})
    assert template.render(messages=[{"role": "user", "content": content}]) == content


def test_the_refusal_of_a_template_that_loops_names_it_and_the_way_out():
    tokenizer = tiny_tokenizer("{{ 'a' * 99999999999 }}")
    tokenizer.name_or_path = "models/mine"
    with pytest.raises(UserError, match=r"chat template of 'models/mine' fails.*'alpaca'") as error:
        render_for(tokenizer)
    assert "\n" not in str(error.value)
    assert render_for(tokenizer, "alpaca").name == "alpaca"


def test_several_named_templates_without_a_default_are_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"rag": CHATML, "tool_use": CHATML}
    with pytest.raises(UserError, match=r"several .rag, tool_use. and none is called 'default'"):
        render_for(tokenizer)
    tokenizer.chat_template = {"rag": PLAIN, "default": CHATML}
    assert render_for(tokenizer).fingerprint == render_for(tiny_tokenizer(CHATML)).fingerprint


def _children() -> list[int]:
    """The processes that this one started and that are not gone."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(child) for child in file.read().split()]
