"""Conversations as text: the model's own chat template, or Stanford Alpaca's blocks.

A layout returns pieces of text that know whether they are the template's words or row content, and
whether the loss counts them.
"""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedsdr.data.template_skeletons import (
    ChatTemplate,
    Skeleton,
    Tools,
    answer_frame,
    chat_template_of,
    control_tokens,
    shape_of,
)
from fedsdr.data.tool_calls import answer_text
from fedsdr.data.tool_messages import Message, answer_message, messages_of, plain_messages
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
# What shows whether a template knows tools.
PROBE_NAME = "probe_name"
PROBE_FUNCTION = {"name": PROBE_NAME, "arguments": {"x": "y"}}
PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": PROBE_NAME,
        "description": "d",
        "parameters": {"type": "object", "properties": {"x": {"type": "string"}}},
    },
}
PROBE: tuple[Message, Message, Message, Message] = (
    {"role": "user", "content": "u"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": PROBE_FUNCTION}],
    },
    {"role": "tool", "content": "r"},
    {"role": "assistant", "content": "a"},
)


@dataclass(frozen=True)
class Piece:
    """A part of the rendered text."""

    text: str
    data: bool = False  # row content: the name of a control token in it stays ordinary text
    supervised: bool = False


# (turns, add_generation_prompt) -> the rendered text in pieces
Layout = Callable[[Sequence[Turn], bool], list[Piece]]


def chat_layout(tokenizer: "PreTrainedTokenizerBase") -> Layout:
    """Return the layout of the tokenizer's own chat template.

    The template is rendered once for each sequence of roles with placeholders as contents, which
    shows its own text. A conversation is then rendered and read along that text, so that no content
    can steer the template unnoticed. Templates that trim contents, add a default system turn, or
    move the system turn are followed. An answer after which the template writes no end-of-turn
    token gets the end-of-sequence token. A template that writes an empty thinking block before the
    last answer alone (Qwen3) has earlier answers trained in the form that they have as history.

    A template that knows tools (`ChatLayout.knows_tools`) is given the tools, calls and results of
    a row. They stay text where it refuses them, and where a tool spells a control token.

    Raises UserError for several named templates without a default, and when the generation prompt
    does not lead up to the answer. The layout raises it for turns that the template refuses, drops,
    repeats or rewrites.
    """
    template = chat_template_of(tokenizer)
    return ChatLayout(template, *answer_frame(template))


@dataclass(frozen=True)
class ChatLayout:
    """A chat template, the white space before its answers, and the end of its turns."""

    template: ChatTemplate
    gap: str
    end_of_turn: str

    def __call__(self, turns: Sequence[Turn], add_generation_prompt: bool) -> list[Piece]:
        if any(turn.tool_messages for turn in turns) and self.knows_tools:
            messages, tools = messages_of(turns)
            if not self._spells_control(shape_of(messages, tools)):
                try:
                    return self._pieces(messages, tools, add_generation_prompt)
                except UserError:
                    pass  # the template refuses them: they stay text
        return self._pieces(plain_messages(turns), None, add_generation_prompt)

    @functools.cached_property
    def knows_tools(self) -> bool:
        """Whether the template itself writes tools, calls and results: a call follows its prompt
        and is read back as the same call."""
        asked, call, result, answer = PROBE
        try:
            written = self.template.written_calls(call)
            for prompt, said in (([asked], call), ([asked, call, result], answer)):
                before, row = (
                    "".join(piece.text for piece in self._pieces(messages, [PROBE_TOOL], is_prompt))
                    for messages, is_prompt in ((prompt, True), ([*prompt, said], False))
                )
                if PROBE_NAME not in before or not row.startswith(before):
                    return False
        except UserError:
            return False
        return answer_message(written) == call

    def _pieces(
        self, messages: Sequence[Message], tools: Tools, add_generation_prompt: bool
    ) -> list[Piece]:
        given = [self._given(message) for message in messages]
        skeleton = self._skeleton(shape_of(messages, tools), add_generation_prompt)
        text = self.template.render([m for m, _ in given], add_generation_prompt, tools)
        contents = self.template.contents([m | {"content": c} for m, c in given], skeleton, text)
        pieces, before = [], skeleton.texts[0]
        for index, content, after in zip(skeleton.order, contents, skeleton.texts[1:], strict=True):
            message, _ = given[index]
            if message["role"] == "assistant":
                lead = self.gap if before.endswith(self.gap) else ""
                ends = self.end_of_turn and after.startswith(self.end_of_turn)
                # The template's words in a call may be control tokens.
                data = "tool_calls" not in message or self._spells_control(
                    json.dumps(message, ensure_ascii=False)
                )
                pieces += [
                    Piece(before.removesuffix(lead)),
                    Piece(lead, supervised=True),
                    Piece(content, data=data, supervised=True),
                    Piece(self.end_of_turn if ends else self._end_of_sequence, supervised=True),
                ]
                before = after.removeprefix(self.end_of_turn) if ends else after
            else:
                pieces += [Piece(before), Piece(content, data=True)]
                before = after
        return [*pieces, Piece(before)]

    def _given(self, message: Message) -> tuple[Message, str]:
        """Return a message for the template, and the content that the template is to write."""
        if "tool_calls" not in message:
            return message, message["content"]
        try:
            return message, self.template.written_calls(message)
        except UserError:  # Llama's refuses several calls in one answer: they stay text
            text = answer_text(message["content"], message["tool_calls"])
            return {"role": "assistant", "content": text}, text

    @functools.cached_property
    def _skeleton(self) -> Callable[[str, bool], Skeleton]:
        return functools.lru_cache(maxsize=64)(self.template.skeleton)

    @functools.cached_property
    def _control(self) -> tuple[str, ...]:
        return tuple(control_tokens(self.template.tokenizer).values())

    def _spells_control(self, text: str) -> bool:
        return any(name in text for name in self._control)

    @property
    def _end_of_sequence(self) -> str:
        return str(self.template.tokenizer.eos_token)


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
