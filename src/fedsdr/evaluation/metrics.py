"""One score in [0, 1] for one answer, by the kind of the client's data.

To add a metric: a function of (gold, answer) and an entry in `METRICS`.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedsdr.data.answer_parsing import Kind, code_of, kind_of, label_of, parse_call, parses
from fedsdr.data.number_parsing import final_number
from fedsdr.data.text_signs import CJK
from fedsdr.types import Example

_WORD = re.compile(rf"[{CJK}]|[^\W_{CJK}]+")  # of rouge-score, in any script


@dataclass(frozen=True)
class Metric:
    """`score(gold, answer)` is in [0, 1], and 1 for the gold answer itself."""

    name: str
    description: str
    score: Callable[[str, str], float]


def exact_label(gold: str, answer: str) -> float:
    """Return 1 when the whole answer, or its first line, is the gold label; else 0.

    Case, white space, and punctuation or quotes around do not count. A sentence that only contains
    the label ("It is not positive.") scores 0: containment would also accept its opposite.
    """
    first_line = answer.strip().partition("\n")[0]
    return float(label_of(gold) in (label_of(answer), label_of(first_line)))


def number_equal(gold: str, answer: str) -> float:
    """Return 1 when the final numbers are equal; see `fedsdr.data.number_parsing.final_number`."""
    wanted = final_number(gold)
    return exact_label(gold, answer) if wanted is None else float(final_number(answer) == wanted)


def call_equal(gold: str, answer: str) -> float:
    """Return 1 when the function calls are equal up to the order of named arguments."""
    wanted = parse_call(gold)
    return exact_label(gold, answer) if wanted is None else float(parse_call(answer) == wanted)


def code_parses(gold: str, answer: str) -> float:
    """Return 1 when the answer's code parses as Python. It is not run: it may well be wrong."""
    return float(parses(code_of(answer))) if parses(code_of(gold)) else exact_label(gold, answer)


def rouge_l(gold: str, answer: str) -> float:
    """Return the ROUGE-L F-measure: 2pr / (p + r) of the longest common subsequence of words.

    As rouge-score computes it by default, without stemming, which knows English alone, but with the
    words of any script, where its tokenizer keeps a-z and 0-9 only. Equal on ASCII text.
    Source: Lin, "ROUGE: a package for automatic evaluation of summaries", 2004.
    """
    wanted, given = _words(gold), _words(answer)
    if not wanted:
        return exact_label(gold, answer)
    common = _common_length(wanted, given)
    if not common:
        return 0.0
    precision, recall = common / len(given), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def _common_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, a bit of an integer for each of `a`.

    Source: Hyyrö, "Bit-parallel LCS-length computation revisited", 2004.
    """
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    full = row = (1 << len(a)) - 1
    for word in b:
        match = row & places.get(word, 0)
        row = (row + match | row - match) & full
    return len(a) - row.bit_count()


# Where a gold answer cannot be read in its client's kind (a row without a number among sums), an
# answer scores 1 for the same text alone, as a label does.
METRICS: dict[Kind, Metric] = {
    "label": Metric("exact_label", "the answer is exactly the label", exact_label),
    "number": Metric("final_number", "the final number is equal", number_equal),
    "call": Metric("function_call", "equal up to the order of named arguments", call_equal),
    "code": Metric("code_parses", "the answer parses as Python; it is not run", code_parses),
    "text": Metric("rouge_l", "ROUGE-L F-measure against the gold answer", rouge_l),
}


def metric_for(examples: Sequence[Example]) -> Metric:
    """Return the metric for a client's data, by the kind of most of its responses.

    Code counts as text, measured by ROUGE-L, unless at least half of the responses are Python:
    other languages cannot be parsed here. Give all rows of a client, not the few of its test.
    """
    responses = [example.response for example in examples]
    kind = kind_of(responses)
    if kind == "code" and 2 * sum(parses(code_of(r)) for r in responses) < len(responses):
        kind = "text"
    return METRICS[kind]


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFC", text).lower())
