"""What a model's answers make up and how they ramble, by signs that need no model.

An answer is reduced to counts (`AnswerAudit`), which hold no text. A sign is a ratio of two of
them, summed over rows. To add one, add an entry to `SIGNS`. docs/measures.md says what each sign
cannot see.
"""

import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fedsdr.data.answer_parsing import LABEL_WORDS, parse_call
from fedsdr.data.number_parsing import final_number
from fedsdr.data.text_signs import (
    filler_words,
    has_template_phrase,
    prose_of,
    repeated_grams,
    unsupported_names,
    unsupported_numbers,
    words_of,
)
from fedsdr.evaluation.intervals import Pair, ratio_interval

# Of these counts and of the scores (metrics.py): raise it when an answer is counted or scored
# otherwise, because those of the base are kept.
VERSION = 3


@dataclass(frozen=True)
class AnswerAudit:
    """The counts of one answer."""

    words: int
    gold_words: int
    prose_words: int  # without code
    numbers: int  # distinct ones of the prose that are in neither the prompt nor the gold answer
    names: int  # capitalised words, likewise
    wrong: bool | None  # another number, label or call than the gold answer's; None for text
    grams: int  # 4-grams of words
    repeated: int  # 4-grams that occurred before in the answer
    fillers: int
    template: bool
    relation: str | None = None  # of the gold answer to this one, by an NLI model


class Sign(NamedTuple):
    """A sign: its name in tables, which direction is better, and its pair for one answer."""

    title: str
    better: str  # as an arrow
    pair: Callable[[Mapping[str, Any]], Pair]  # of an AnswerAudit's fields and `finished`


def audit_answer(prompt: str, gold: str, answer: str, metric: str) -> AnswerAudit:
    """Return the counts of one answer; `metric` is the name of its client's metric."""
    prompt, gold, answer = (unicodedata.normalize("NFC", text) for text in (prompt, gold, answer))
    words, prose, source = words_of(answer), prose_of(answer), f"{prompt}\n{gold}"
    repeated, grams = repeated_grams(words)
    return AnswerAudit(
        words=len(words),
        gold_words=len(words_of(gold)),
        prose_words=len(words_of(prose)),
        numbers=len(unsupported_numbers(prose, source)),
        names=len(unsupported_names(prose, source)),
        wrong=_WRONG[metric](gold, answer) if metric in _WRONG else None,
        grams=grams,
        repeated=repeated,
        fillers=sum(word in filler_words() for word in words),
        template=has_template_phrase(answer),
    )


def wrong_number(gold: str, answer: str) -> bool | None:
    """Return whether the answer ends at a number other than the gold answer's."""
    wanted, found = final_number(gold), final_number(answer)
    return None if wanted is None else found not in (None, wanted)


def wrong_label(gold: str, answer: str) -> bool | None:
    """Return whether the answer's first line is as short as a label and lacks the gold label."""
    words = words_of(answer.strip().partition("\n")[0])
    line, label = (f" {' '.join(of)} " for of in (words, words_of(gold)))
    return 0 < len(words) <= LABEL_WORDS and label not in line


def wrong_call(gold: str, answer: str) -> bool | None:
    """Return whether the answer calls another function, or the same with other arguments."""
    wanted, found = parse_call(gold), parse_call(answer)
    return None if wanted is None else found not in (None, wanted)


# Name of a metric -> whether an answer of its kind states another fact than the gold answer. An
# answer that states none is not wrong; None where the gold answer states none.
_WRONG: dict[str, Callable[[str, str], bool | None]] = {
    "final_number": wrong_number,
    "exact_label": wrong_label,
    "function_call": wrong_call,
}

SIGNS: dict[str, Sign] = {
    "unsupported": Sign(
        "answers with a number or name from nowhere",
        "↓",
        lambda a: (float(a["numbers"] + a["names"] > 0), 1),
    ),
    "unsupported_per_100_words": Sign(
        "numbers and names from nowhere per 100 words",
        "↓",
        lambda a: (100 * (a["numbers"] + a["names"]), max(1, a["prose_words"])),
    ),
    "wrong": Sign(
        "wrong final number, label or call",
        "↓",
        lambda a: (float(bool(a["wrong"])), float(a["wrong"] is not None)),
    ),
    "length_ratio": Sign(
        "words of the answer / of the gold", "→ 1", lambda a: (a["words"], a["gold_words"])
    ),
    "repeated": Sign(
        "share of 4-grams that repeat", "↓", lambda a: (a["repeated"], max(1, a["grams"]))
    ),
    "fillers": Sign(
        "fillers per 1,000 words", "↓", lambda a: (1000 * a["fillers"], max(1, a["words"]))
    ),
    "template": Sign("answers with a template phrase", "↓", lambda a: (float(a["template"]), 1)),
    "unfinished": Sign(
        "answers unfinished at the limit", "↓", lambda a: (float(not a["finished"]), 1)
    ),
    "contradiction": Sign(
        "answers that contradict the gold", "↓", lambda a: _relation(a, "contradiction")
    ),
    "neutral": Sign(
        "answers that do not follow from the gold", "↓", lambda a: _relation(a, "neutral")
    ),
}


def sign_pair(name: str, row: Mapping[str, Any]) -> Pair:
    """Return the pair of a sign for one test row of results.json; (0, 0) where it does not apply or
    the results are of a version without an audit."""
    if not row.get("audit"):
        return 0.0, 0.0
    numerator, denominator = SIGNS[name].pair({**row["audit"], "finished": row["finished"]})
    return float(numerator), float(denominator)


def measured_signs(rows: Sequence[Mapping[str, Any]], seed: int) -> dict[str, dict[str, Any]]:
    """Return sign -> {value, interval, rows, weight} over the test rows to which a sign applies.

    The value is the ratio of the sums, `weight` the sum of the denominators.
    """
    found = {}
    for name in SIGNS:
        pairs = [pair for row in rows if (pair := sign_pair(name, row))[1]]
        if pairs:
            total, weight = (math.fsum(of) for of in zip(*pairs, strict=True))
            found[name] = {
                "value": total / weight,
                "interval": ratio_interval(pairs, seed),
                "rows": len(pairs),
                "weight": weight,
            }
    return found


def _relation(audit: Mapping[str, Any], name: str) -> Pair:
    relation = audit.get("relation")
    return float(relation == name), float(relation is not None)
