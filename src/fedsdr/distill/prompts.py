"""Rewriting prompts: the instruction, its gold answer as a guide, "in your own words".

prompts.toml has one for each family of answers; a user's own file has the same form.
"""

import re
import tomllib
from collections import deque
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path

from fedsdr.config import read_table
from fedsdr.data.answer_parsing import Kind, kind_of_one
from fedsdr.errors import UserError, nearest
from fedsdr.types import Example, Turn

FAMILIES: dict[Kind, str] = {
    "text": "general",
    "number": "maths",
    "code": "code",
    "label": "classification",
    "call": "functions",
}
MAX_HISTORY = 32_000  # characters; without a bound long conversations would take quadratic memory
_PLACEHOLDERS = ("instruction", "input", "history", "response")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


def load_prompts(path: str | Path | None = None) -> dict[str, str]:
    """Return a prompt for each family: the built-in ones, or those of a TOML file.

    A family missing in the file takes the file's `general`, or else its built-in prompt. UserError
    names the file and the key of an unknown family, an unknown placeholder, a prompt without
    {response}, or a value that is not text.
    """
    built_in = tomllib.loads(
        resources.files(__package__).joinpath("prompts.toml").read_text("utf-8")
    )
    if path is None:
        return built_in
    own = {
        family: _checked(prompt, f"{path}: {family}", family)
        for family, prompt in read_table(Path(path), "teacher.prompts names it").items()
    }
    return {family: own.get(family, own.get("general", built_in[family])) for family in built_in}


def family_of(response: str, client_kind: Kind) -> str:
    """Return the family whose prompt and checks apply to an answer.

    It is that of the answer itself (`kind_of_one`), since a client may have several kinds. A short
    answer is a label only if the client's answers are (`kind_of`): "I am fine" in a chat is not.
    """
    kind = kind_of_one(response)
    return FAMILIES["text" if kind == "label" and client_kind != "label" else kind]


def placeholders_of(example: Example) -> Iterator[dict[str, str]]:
    """Yield the values of the placeholders for each assistant turn, in order.

    instruction: the user message that it answers; input: the example's, for its last turn only;
    history: the turns before, gold answers included, as lines "User: ...", "Assistant: ...", of
    them the latest `MAX_HISTORY` characters; response: its gold answer.
    """
    lines: deque[str] = deque()
    room = MAX_HISTORY
    asked: Turn | None = None  # the message before this turn, not yet in `lines`
    last = Turn("user", example.instruction), Turn("assistant", example.response)
    for turn in (*example.history, *last):
        if turn.role == "assistant":
            yield {
                "instruction": asked.content if asked else "",
                "input": example.input if turn is last[1] else "",
                "history": "\n".join(lines),
                "response": turn.content,
            }
        for said in (asked, None if turn.role == "user" else turn):
            if said:
                lines.append(f"{said.role.capitalize()}: {said.content}")
                room -= len(lines[-1])
        while room < 0:
            room += len(lines.popleft())
        asked = turn if turn.role == "user" else None


def fill(prompt: str, values: Mapping[str, str]) -> str:
    """Fill the placeholders, and drop the paragraphs whose placeholders are all empty."""
    filled = []
    for paragraph in re.split(r"\n\s*\n", prompt.strip()):
        names = _PLACEHOLDER.findall(paragraph)
        if not names or any(values[name] for name in names):
            filled.append(_PLACEHOLDER.sub(lambda match: values[match[1]], paragraph))
    return "\n\n".join(filled)


def _checked(prompt: object, where: str, family: str) -> str:
    families = list(FAMILIES.values())
    if family not in families:
        raise UserError(
            f"{where}: no such family (one of: {', '.join(families)}){nearest(family, families)}"
        )
    if not isinstance(prompt, str):
        raise UserError(f"{where}: must be text in quotes")
    for name in _PLACEHOLDER.findall(prompt):
        if name not in _PLACEHOLDERS:
            known = ", ".join(f"{{{known}}}" for known in _PLACEHOLDERS)
            raise UserError(f"{where}: unknown placeholder {{{name}}} (one of: {known})")
    if "{response}" not in prompt:
        raise UserError(f"{where}: must hold {{response}}, where the gold answer is shown")
    return prompt
