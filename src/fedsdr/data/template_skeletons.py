"""What a chat template writes around the contents of a conversation.

The template is rendered with placeholders as contents, which shows its own text: the skeleton.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedsdr.data.bounded_template import BoundedTemplate, TemplateBoundError
from fedsdr.data.tool_messages import Message
from fedsdr.errors import UserError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Some templates write today's date. A run must be repeatable, so their clock is fixed.
FIXED_DAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
OPEN, CLOSE = "\ue000", "\ue001"  # around the number of a content in a skeleton
PLACEHOLDER = re.compile(f"{OPEN}([0-9]+){CLOSE}")
# How templates trim a content, on one side or both, some of line breaks alone; Llama's writes the
# results of tools as JSON.
TRIMS: tuple[Callable[[str], str], ...] = (
    str, str.strip, str.lstrip, str.rstrip,
    lambda text: text.strip("\n"), lambda text: text.lstrip("\n"), lambda text: text.rstrip("\n"),
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
)  # fmt: skip
USE_ALPACA = "set model.template = 'alpaca'"
USER: Message = {"role": "user"}
ANSWER: Message = {"role": "assistant"}
Tools = Sequence[Any] | None


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
        self, messages: Sequence[Message], add_generation_prompt: bool, tools: Tools = None
    ) -> str:
        """Return the text of a conversation. UserError when the template refuses it."""
        roles = [message["role"] for message in messages]
        try:
            return self.template.render(
                messages=messages, tools=tools, add_generation_prompt=add_generation_prompt
            )
        except TemplateBoundError as error:
            raise UserError(
                f"{self.name} fails on the turns {_listed(roles)}: {error}; {USE_ALPACA}"
            ) from None
        except ValueError as error:
            raise UserError(
                f"{self.name} refuses the turns {_listed(roles)} ({one_line(str(error))}); change "
                f"them or {USE_ALPACA}"
            ) from error

    def skeleton(self, shape: str, add_generation_prompt: bool) -> Skeleton:
        """Render placeholders as contents of messages of a shape (`shape_of`). UserError when the
        template drops or repeats one."""
        given = json.loads(shape)
        messages = [m | {"content": f"{OPEN}{i}{CLOSE}"} for i, m in enumerate(given["messages"])]
        text = self.render(messages, add_generation_prompt, given["tools"])
        parts = PLACEHOLDER.split(text)
        order = tuple(map(int, parts[1::2]))
        if sorted(order) != list(range(len(messages))):
            roles = _listed([message["role"] for message in messages])
            raise UserError(
                f"{self.name} drops or repeats one of the turns {roles}; change them or "
                f"{USE_ALPACA}"
            )
        return Skeleton(order, tuple(parts[::2]))

    def contents(self, messages: Sequence[Message], skeleton: Skeleton, text: str) -> list[str]:
        """Return the contents as they stand in the rendered text, in the order of the skeleton.

        UserError when the text is not the skeleton with the contents, each perhaps trimmed.
        """
        found: list[str] = []
        at = len(skeleton.texts[0]) if text.startswith(skeleton.texts[0]) else len(text) + 1
        for index, after in zip(skeleton.order, skeleton.texts[1:], strict=True):
            content = _trimmed_as_in(text, at, messages[index]["content"], after)
            last = len(found) + 1 == len(messages)
            if content is None or (last and at + len(content) + len(after) != len(text)):
                role = messages[index]["role"]
                raise UserError(
                    f"{self.name} rewrites turn {index + 1} ({role}), as some do with "
                    f"a <think> block; remove what it rewrites or {USE_ALPACA}"
                )
            found.append(content)
            at += len(content) + len(after)
        return found

    def written_calls(self, message: Message) -> str:
        """Return how the template writes an answer with calls, between what it writes before and
        after any answer. UserError when it refuses the answer, or writes something else there."""
        asked = {"role": "user", "content": f"{OPEN}0{CLOSE}"}
        before, between, after = self.skeleton(shape_of([USER, ANSWER]), False).texts
        before += asked["content"] + between
        text = self.render([asked, message], False)
        written = text.removeprefix(before).removesuffix(after)
        if text != before + written + after:
            raise UserError(f"{self.name} writes other words around a call than around an answer")
        return written


def shape_of(messages: Sequence[Message], tools: Tools = None) -> str:
    """Return JSON of all that the template is given but contents and calls."""
    kept = [{k: v for k, v in m.items() if k not in ("content", "tool_calls")} for m in messages]
    return json.dumps({"messages": kept, "tools": tools}, ensure_ascii=False)


def chat_template_of(tokenizer: "PreTrainedTokenizerBase") -> ChatTemplate:
    """Return the tokenizer's chat template; of several named ones that called "default"."""
    name, given = f"the chat template of '{tokenizer.name_or_path}'", tokenizer.chat_template
    if isinstance(given, dict) and "default" not in given:
        raise UserError(
            f"{name}: there are several ({', '.join(given)}) and none is called 'default'; "
            f"rename one in tokenizer_config.json or {USE_ALPACA}"
        )
    always = {"documents": None, "enable_thinking": False}
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
    _, prompt = template.skeleton(shape_of([USER]), True).texts
    _, before, after = template.skeleton(shape_of([USER, ANSWER]), False).texts
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


def _listed(roles: Sequence[str]) -> str:
    """Return the roles of a conversation for a message, at most eight of them."""
    return ", ".join(roles[:8]) + (f", ... ({len(roles)} in all)" if len(roles) > 8 else "")
