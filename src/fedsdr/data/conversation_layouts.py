"""Conversations as text: the model's own chat template, or Stanford Alpaca's blocks.

A layout returns pieces of text that know whether they are the template's words or row content, and
whether the loss counts them.
"""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedsdr.data.bounded_template import BoundedTemplate, TemplateBoundError
from fedsdr.errors import UserError, one_line
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
# Some templates write today's date. A run must be repeatable, so their clock is fixed.
FIXED_DAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
OPEN, CLOSE = "\ue000", "\ue001"  # around the number of a content in a skeleton
PLACEHOLDER = re.compile(f"{OPEN}([0-9]+){CLOSE}")
# How templates trim a content, on one side or both, some of line breaks alone.
TRIMS: tuple[Callable[[str], str], ...] = (
    str, str.strip, str.lstrip, str.rstrip,
    lambda text: text.strip("\n"), lambda text: text.lstrip("\n"), lambda text: text.rstrip("\n"),
)  # fmt: skip
USE_ALPACA = "set model.template = 'alpaca'"


@dataclass(frozen=True)
class Piece:
    """A part of the rendered text."""

    text: str
    data: bool = False  # row content: the name of a control token in it stays ordinary text
    supervised: bool = False


# (turns, add_generation_prompt) -> the rendered text in pieces
Layout = Callable[[Sequence[Turn], bool], list[Piece]]


def control_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    """Return the tokenizer's special tokens: id -> text."""
    return {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if t.special}


@dataclass(frozen=True)
class Skeleton:
    """What a chat template writes around the contents of one sequence of roles.

    `order` numbers the contents as the template writes them; `texts` has one text more, since they
    stand before, between and after the contents.
    """

    order: tuple[int, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template, its clock fixed and thinking switched off."""

    tokenizer: "PreTrainedTokenizerBase"
    name: str  # for messages
    template: BoundedTemplate

    def render(
        self, roles: Sequence[str], contents: Sequence[str], add_generation_prompt: bool
    ) -> str:
        """Return the text of a conversation. UserError when the template refuses it."""
        turns = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
        try:
            return self.template.render(messages=turns, add_generation_prompt=add_generation_prompt)
        except TemplateBoundError as error:
            raise UserError(
                f"{self.name} fails on the turns {_listed(roles)}: {error}; {USE_ALPACA}"
            ) from None
        except ValueError as error:
            raise UserError(
                f"{self.name} refuses the turns {_listed(roles)} ({one_line(str(error))}); change "
                f"them or {USE_ALPACA}"
            ) from error

    def skeleton(self, roles: Sequence[str], add_generation_prompt: bool) -> Skeleton:
        """Render placeholders as contents. UserError when the template drops or repeats one."""
        placeholders = [f"{OPEN}{i}{CLOSE}" for i in range(len(roles))]
        parts = PLACEHOLDER.split(self.render(roles, placeholders, add_generation_prompt))
        order = tuple(map(int, parts[1::2]))
        if sorted(order) != list(range(len(roles))):
            raise UserError(
                f"{self.name} drops or repeats one of the turns {_listed(roles)}; change them or "
                f"{USE_ALPACA}"
            )
        return Skeleton(order, tuple(parts[::2]))

    def contents(self, turns: Sequence[Turn], skeleton: Skeleton, text: str) -> list[str]:
        """Return the contents as they stand in the rendered text, in the order of the skeleton.

        UserError when the text is not the skeleton with the contents, each perhaps trimmed.
        """
        found: list[str] = []
        at = len(skeleton.texts[0]) if text.startswith(skeleton.texts[0]) else len(text) + 1
        for index, after in zip(skeleton.order, skeleton.texts[1:], strict=True):
            content = _trimmed_as_in(text, at, turns[index].content, after)
            last = len(found) + 1 == len(turns)
            if content is None or (last and at + len(content) + len(after) != len(text)):
                raise UserError(
                    f"{self.name} rewrites turn {index + 1} ({turns[index].role}), as some do with "
                    f"a <think> block; remove what it rewrites or {USE_ALPACA}"
                )
            found.append(content)
            at += len(content) + len(after)
        return found


def chat_layout(tokenizer: "PreTrainedTokenizerBase") -> Layout:
    """Return the layout of the tokenizer's own chat template.

    The template is rendered once for each sequence of roles with placeholders as contents, which
    shows its own text. A conversation is then rendered and read along that text, so that no content
    can steer the template unnoticed. Templates that trim contents, add a default system turn, or
    move the system turn are followed. An answer after which the template writes no end-of-turn
    token gets the end-of-sequence token. A template that writes an empty thinking block before the
    last answer alone (Qwen3) has earlier answers trained in the form that they have as history.

    Raises UserError for several named templates without a default, and when the generation prompt
    does not lead up to the answer. The layout raises it for turns that the template refuses, drops,
    repeats or rewrites.
    """
    template = chat_template_of(tokenizer)
    skeleton_of = functools.lru_cache(maxsize=64)(template.skeleton)
    gap, end_of_turn = answer_frame(template)

    def layout(turns: Sequence[Turn], add_generation_prompt: bool) -> list[Piece]:
        roles = tuple(turn.role for turn in turns)
        skeleton = skeleton_of(roles, add_generation_prompt)
        text = template.render(roles, [turn.content for turn in turns], add_generation_prompt)
        contents = template.contents(turns, skeleton, text)
        pieces, before = [], skeleton.texts[0]
        for index, content, after in zip(skeleton.order, contents, skeleton.texts[1:], strict=True):
            if roles[index] == "assistant":
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


def chat_template_of(tokenizer: "PreTrainedTokenizerBase") -> ChatTemplate:
    """Return the tokenizer's chat template; of several named ones that called "default"."""
    name, given = f"the chat template of '{tokenizer.name_or_path}'", tokenizer.chat_template
    if isinstance(given, dict) and "default" not in given:
        raise UserError(
            f"{name}: there are several ({', '.join(given)}) and none is called 'default'; "
            f"rename one in tokenizer_config.json or {USE_ALPACA}"
        )
    always = {"tools": None, "documents": None, "enable_thinking": False}
    template = BoundedTemplate(
        FIXED_DAY + tokenizer.get_chat_template(), tokenizer.special_tokens_map | always
    )
    return ChatTemplate(tokenizer, name, template)


def answer_frame(template: ChatTemplate) -> tuple[str, str]:
    """Return the white space before an answer that the model must write, and the end of a turn.

    [INST] templates write a space between the generation prompt and the answer, and there it may
    be a token of its own. The end is the first control token after an answer, "" if there is none.
    UserError when the generation prompt is not the beginning of what stands before an answer.
    """
    _, prompt = template.skeleton(("user",), True).texts
    _, before, after = template.skeleton(("user", "assistant"), False).texts
    gap = before.removeprefix(prompt)
    if not before.startswith(prompt) or gap.strip():
        raise UserError(
            f"{template.name} does not begin an answer ({before[-40:]!r}) as its generation "
            f"prompt ends ({prompt[-40:]!r}); {USE_ALPACA}"
        )
    controls = "|".join(map(re.escape, control_tokens(template.tokenizer).values()))
    found = re.match(rf"\s*(?:{controls})", after)
    return gap, found.group() if found else ""


def _trimmed_as_in(text: str, at: int, content: str, after: str) -> str | None:
    """Return the trimmed form of `content` at `text[at:]` that `after` follows, or None."""
    for trim in TRIMS:
        form = trim(content)
        if text.startswith(form, at) and text.startswith(after, at + len(form)):
            return form
    return None


def alpaca_layout(tokenizer: "PreTrainedTokenizerBase") -> Layout:
    """Return Stanford Alpaca's layout, with the end-of-sequence token after every response.

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


def _listed(roles: Sequence[str]) -> str:
    """Return the roles of a conversation for a message, at most eight of them."""
    return ", ".join(roles[:8]) + (f", ... ({len(roles)} in all)" if len(roles) > 8 else "")
