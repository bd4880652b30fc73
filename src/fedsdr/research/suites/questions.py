"""What a suite asks: one question with its worked examples, and the prompt that they make."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest


@dataclass(frozen=True)
class Question:
    """One question. The prompt is `head`, then `shots`, then `text`; what is right is in `answer`
    (a choice, or the text that is expected) and, in TruthfulQA, in the first `right` choices."""

    id: str
    group: str  # the subject or task that it is of
    text: str
    answer: str
    choices: tuple[str, ...] = ()  # what may be said, where it is a choice
    head: str = ""
    shots: tuple[str, ...] = ()  # worked examples, each with the blank line behind it
    right: int = 1  # how many of the choices, from the first on, are true (TruthfulQA)
    test: str = ""  # a program that fails where an answer is wrong (HumanEval)


def prompt_of(question: Question, fits: Callable[[str], bool]) -> tuple[str, int]:
    """Return the prompt and how many shots it has: the most, from the first on, with which it fits.

    Without any shot it is returned whether it fits or not. As in InstructEval.
    """
    for kept in range(len(question.shots), 0, -1):
        prompt = question.head + "".join(question.shots[:kept]) + question.text
        if fits(prompt):
            return prompt, kept
    return question.head + question.text, 0


def limited(questions: Sequence[Question], limit: int) -> list[Question]:
    """Return at most `limit` questions (0: all), one of each group in turn, in their old order."""
    if not limit:
        return list(questions)
    groups: dict[str, list[int]] = {}
    for place, question in enumerate(questions):
        groups.setdefault(question.group, []).append(place)
    turns = (place for turn in zip_longest(*groups.values()) for place in turn if place is not None)
    return [questions[place] for place in sorted(_first(turns, limit))]


def _first(places: Iterable[int], count: int) -> list[int]:
    return [place for place, _ in zip(places, range(count), strict=False)]
