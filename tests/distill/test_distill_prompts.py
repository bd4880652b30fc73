"""The rewriting prompts: what is shown to the model, and users' own files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsdr.distill.prompts import FAMILIES, family_of, fill, load_prompts, placeholders_of
from fedsdr.errors import UserError
from fedsdr.types import Example, Turn

ONE = Example("a", "Translate.", "bonjour", "hello")
TALK = Example(
    "t",
    "And six?",
    "",
    "13",
    history=(Turn("system", "Be brief."), Turn("user", "What is 5 + 2?"), Turn("assistant", "7")),
)


def prompt_for(example, turn=0, family="general", prompts=None):
    return fill((prompts or load_prompts())[family], [*placeholders_of(example)][turn])


@pytest.mark.parametrize("family", FAMILIES.values())
def test_every_built_in_prompt_shows_the_request_and_the_gold_answer(family):
    shown = prompt_for(ONE, family=family)
    assert "Translate." in shown
    assert "bonjour" in shown
    assert "hello" in shown
    assert "{" not in shown


def test_a_paragraph_with_nothing_to_show_is_left_out():
    template = "History: {history}\n\nQ: {instruction} {input}\n\nInput: {input}\n\nA: {response}"
    example = Example("b", "Say hi.", "", "hi")
    assert fill(template, next(placeholders_of(example))) == "Q: Say hi. \n\nA: hi"
    assert "\n\n\n" not in prompt_for(example)


def test_each_turn_of_a_conversation_sees_what_came_before_it_and_no_more():
    first, second = prompt_for(TALK, 0), prompt_for(TALK, 1)
    assert "System: Be brief." in first
    assert "What is 5 + 2?" in first
    assert "And six?" not in first
    assert "13" not in first
    assert "User: What is 5 + 2?\nAssistant: 7" in second
    assert "And six?" in second
    assert "good answer:\n\n13" in second


def test_of_a_long_history_the_latest_turns_are_shown_so_that_memory_stays_linear():
    turns = tuple(Turn(("user", "assistant")[i % 2], f"{i} " + "x" * 998) for i in range(400))
    *_, values = placeholders_of(Example("l", "And?", "", "end", history=turns))
    lines = values["history"].split("\n")
    assert len(lines) == 31  # of at most 1013 characters
    assert lines[-1] == f"Assistant: {turns[-1].content}"
    assert lines[0].startswith("Assistant: 369 ")


@given(st.text())
def test_what_the_data_says_is_never_read_as_a_placeholder(text):
    example = Example("c", "{response}{x}", text, "gold")
    assert fill("{instruction}|{input}|{response}", next(placeholders_of(example))) == (
        f"{{response}}{{x}}|{text}|gold"
    )


@pytest.mark.parametrize(
    ("response", "client", "family"),
    [
        ("positive", "label", "classification"),
        ("I am fine", "text", "general"),
        ("It rose by 3 %, said the company on Monday.", "label", "general"),
        ("3 + 4 = 7\nThe answer is 7.", "text", "maths"),
        ("area(base=3)", "text", "functions"),
        ("def f(x):\n    return x", "call", "code"),
    ],
)
def test_the_family_follows_the_answer_and_labels_follow_the_client(response, client, family):
    assert family_of(response, client) == family


def test_a_users_file_replaces_prompts_and_its_general_serves_the_families_it_leaves_out(tmp_path):
    text = 'general = "Say {response} anew, not { or {a b}"\ncode = "C {response}"'
    prompts = load_prompts(_with(tmp_path / "p.toml", text))
    assert prompt_for(ONE, prompts=prompts) == "Say hello anew, not { or {a b}"
    assert prompt_for(ONE, family="maths", prompts=prompts) == "Say hello anew, not { or {a b}"
    assert prompt_for(ONE, family="code", prompts=prompts) == "C hello"


def test_a_file_without_general_keeps_the_built_in_prompts(tmp_path):
    prompts = load_prompts(_with(tmp_path / "p.toml", 'code = "C {response}"'))
    assert prompts["general"] == load_prompts()["general"]


def _with(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('general = "{response} {inptu}"', "general: unknown placeholder {inptu}"),
        ('general = "no gold answer"', "general: must hold {response}"),
        ('math = "{response}"', "math: no such family"),
        ("code = 3", "code: must be text"),
        ("code = ", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path, text, says):
    path = _with(tmp_path / "own.toml", text)
    with pytest.raises(UserError, match=r"own\.toml") as error:
        load_prompts(path)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.toml: no such file"):
        load_prompts(tmp_path / "none.toml")
