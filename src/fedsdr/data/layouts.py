"""How a conversation is laid out as text: the model's own chat template, or Alpaca's.

A layout gives pieces that know whether they are the template's text or someone's data, and whether
the loss counts them.
"""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedsdr.errors import UserError
from fedsdr.types import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Stanford Alpaca's wording; the line break after "### Response:" is Alpaca-LoRA's.
ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request."
)
# Some templates write today's date, and a run must repeat: this takes the place of their clock.
FIXED_DAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
# An em space on each side of a placeholder shows whether the template strips its contents.
PAD, OPEN, CLOSE = "\u2003", "\ue000", "\ue001"
PLACEHOLDER = re.compile(f"({PAD}?){OPEN}([0-9]+){CLOSE}({PAD}?)")
USE_ALPACA = "set model.template = 'alpaca'"


@dataclass(frozen=True)
class Piece:
    """A part of the rendered text."""

    text: str
    data: bool = False  # someone's text: a control token's name in it stays ordinary text
    supervised: bool = False


# (turns, add_generation_prompt) -> the rendered text in pieces
Layout = Callable[[Sequence[Turn], bool], list[Piece]]


def control_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    """Return the tokenizer's special tokens: id -> text."""
    return {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if t.special}


def chat_layout(tokenizer: "PreTrainedTokenizerBase") -> Layout:
    """Return the layout of the tokenizer's own chat template.

    The template is rendered once for each sequence of roles, with a placeholder for each content,
    so that where a content begins and ends is known and nothing in a content can steer it.
    Templates that strip contents, add a default system turn, or move the system turn are followed.
    An answer after which the template writes no end-of-turn token gets the end-of-sequence token.
    Thinking is switched off; a template that writes an empty thinking block before the last answer
    alone (Qwen3) has earlier answers trained in the form that they have as history.

    Raises UserError when the generation prompt does not lead up to the answer; the layout raises
    it for turns that the template refuses, drops or repeats.
    """
    import jinja2

    where = f"the chat template of '{tokenizer.name_or_path}'"
    template = FIXED_DAY + tokenizer.get_chat_template()

    @functools.cache
    def skeleton(roles: tuple[str, ...], add_generation_prompt: bool) -> list[str]:
        """The template's texts, with (left pad, index, right pad) of a content between them."""
        contents = [f"{PAD}{OPEN}{i}{CLOSE}{PAD}" for i in range(len(roles))]
        try:
            text = tokenizer.apply_chat_template(
                [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)],
                chat_template=template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                enable_thinking=False,
            )
        except jinja2.TemplateError as error:
            raise UserError(
                f"{where} refuses the turns {', '.join(roles)} ({error}); change them or "
                f"{USE_ALPACA}"
            ) from error
        parts = PLACEHOLDER.split(str(text))
        if sorted(map(int, parts[2::4])) != list(range(len(roles))):
            raise UserError(
                f"{where} drops or repeats one of the turns {', '.join(roles)}; change them or "
                f"{USE_ALPACA}"
            )
        return parts

    # What the template writes between the generation prompt and the answer, so that the model must
    # write it too: a space in [INST] templates, where it may be a token of its own.
    prompt, whole = skeleton(("user",), True), skeleton(("user", "assistant"), False)
    gap = whole[4].removeprefix(prompt[4])
    if not whole[4].startswith(prompt[4]) or gap.strip():
        raise UserError(
            f"{where} does not begin an answer ({whole[4][-40:]!r}) as its generation prompt ends "
            f"({prompt[4][-40:]!r}); {USE_ALPACA}"
        )
    controls = "|".join(map(re.escape, control_tokens(tokenizer).values()))
    found = re.match(rf"\s*(?:{controls})", whole[8])
    end_of_turn = found.group() if found else ""

    def layout(turns: Sequence[Turn], add_generation_prompt: bool) -> list[Piece]:
        parts = skeleton(tuple(turn.role for turn in turns), add_generation_prompt)
        pieces, before = [], parts[0]
        for left, index, right, after in zip(*(parts[i::4] for i in (1, 2, 3, 4)), strict=True):
            turn = turns[int(index)]
            content = turn.content if left else turn.content.lstrip()
            content = content if right else content.rstrip()
            if turn.role == "assistant":
                lead = gap if before.endswith(gap) else ""
                ends = end_of_turn and after.startswith(end_of_turn)
                pieces += [
                    Piece(before.removesuffix(lead)),
                    Piece(lead, supervised=True),
                    Piece(content, data=True, supervised=True),
                    Piece(end_of_turn if ends else tokenizer.eos_token, supervised=True),
                ]
                before = after.removeprefix(end_of_turn) if ends else after
            else:
                pieces += [Piece(before), Piece(content, data=True)]
                before = after
        return [*pieces, Piece(before)]

    return layout


def alpaca_layout(tokenizer: "PreTrainedTokenizerBase") -> Layout:
    """Return Stanford Alpaca's layout, every response followed by the end-of-sequence token.

    A user turn is an instruction up to its first blank line and an input after it, as `turns_of`
    joins them. More turns follow as more blocks; a system turn at the start replaces the preamble.
    """
    begins = tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    bos = tokenizer.bos_token if begins else ""

    def layout(turns: Sequence[Turn], add_generation_prompt: bool) -> list[Piece]:
        first = next((turn.content for turn in turns if turn.role == "user"), "")
        preamble = ALPACA_WITH_INPUT if "\n\n" in first else ALPACA
        pieces = [Piece(bos), Piece("" if turns[0].role == "system" else preamble)]
        for position, turn in enumerate(turns):
            if turn.role == "system":
                pieces += [Piece("\n\n" if position else ""), Piece(turn.content, data=True)]
            elif turn.role == "user":
                instruction, _, given = turn.content.partition("\n\n")
                pieces += [Piece("\n\n### Instruction:\n"), Piece(instruction, data=True)]
                if given:
                    pieces += [Piece("\n\n### Input:\n"), Piece(given, data=True)]
            else:
                pieces += [
                    Piece("\n\n### Response:\n"),
                    Piece(turn.content, data=True, supervised=True),
                    Piece(tokenizer.eos_token, supervised=True),
                ]
        return [*pieces, Piece("\n\n### Response:\n")] if add_generation_prompt else pieces

    return layout
