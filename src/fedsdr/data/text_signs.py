"""What the words of an answer show: unsupported numbers and names, template phrases, repetition.

Signs are proxies: they read words and numbers, not meaning, and phrases of English alone.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from functools import cache
from importlib import resources

from fedsdr.data.answer_parsing import looks_like_code
from fedsdr.data.number_parsing import numbers_in

# Chinese and Japanese are written without spaces: there, a character counts as a word.
CJK = r"\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{CJK}]|[^\W_{CJK}]+(?:['\u2019][^\W_]+)*")
_LETTERS = re.compile(r"[^\W\d_]+")
_NAME = re.compile(r"(?<=[^\W\d_] |[,;(] )[A-Z][^\W\d_]+")  # not the first word of a sentence
_FENCED = re.compile(r"```.*?(?:```|\Z)", re.S)
_LIST_NUMBER = re.compile(r"^\W*(?:step |part |option )?\d{1,2}[.):]+(?!\d)", re.I | re.M)
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
                 "ten", "eleven", "twelve")  # fmt: skip
_TEMPLATES = re.compile(
    r"\A\W*(?:sure|certainly|of course|absolutely|great question)\b[!,.:]|"
    r"\bhere(?:'s|\u2019s| is| are) (?:a|an|the|some|my|your|how)\b|"
    r"\bi hope (?:this|that) helps\b|\blet me know if\b|\bfeel free to\b|"
    r"\bit(?:'s|\u2019s| is) (?:important|worth|essential|crucial) (?:to|noting)\b|"
    r"^\W*(?:in (?:summary|conclusion|short)|to summari[sz]e|overall),|"
    r"\blet(?:'s|\u2019s| us) (?:break (?:it|this) down|think|take a look)\b|"
    r"\bthe answer to (?:the|this|your) question\b|\bas an ai\b",
    re.I | re.M,
)


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case: letters and digits with inner apostrophes."""
    return _WORD.findall(text.lower())


def names_in(text: str) -> list[str]:
    """Return the distinct capitalised words inside sentences, in order.

    Without those of headings in title case: of a line, or of what is before its colon.
    """
    lines = map(_without_heading, text.splitlines())
    return list(dict.fromkeys(name for line in lines for name in _NAME.findall(line)))


@cache
def filler_words() -> frozenset[str]:
    """Return the published list in fillers.txt, which names its source."""
    text = resources.files(__package__).joinpath("fillers.txt").read_text("utf-8")
    return frozenset(line for line in text.splitlines() if not line.startswith("#"))


def has_template_phrase(text: str) -> bool:
    """Return whether the text has a stock phrase of chat models: "Sure!", "I hope this helps"."""
    return bool(_TEMPLATES.search(text))


def repeated_grams(words: Sequence[str], size: int = 4) -> tuple[int, int]:
    """Return how many of the n-grams of `size` words occurred before, and how many there are."""
    grams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    return len(grams) - len(set(grams)), len(grams)


def prose_of(text: str) -> str:
    """Return a text without fenced code, lines that read like code, and the numbers of lists."""
    lines = _FENCED.sub("\n", text).splitlines()
    kept = "\n".join(line for line in lines if not looks_like_code(line))
    return _LIST_NUMBER.sub("", kept)


def unsupported_numbers(prose: str, source: str) -> set[Decimal]:
    """Return the distinct numbers of `prose` that are not in `source`, whatever their sign.

    A number of the source that is written as a word counts up to twelve.
    """
    written = {Decimal(n) for n, word in enumerate(_NUMBER_WORDS) if word in words_of(source)}
    return {abs(n) for n in numbers_in(prose)} - {abs(n) for n in numbers_in(source)} - written


def unsupported_names(prose: str, source: str) -> set[str]:
    """Return the distinct names of `prose`, in lower case, that are not in `source`.

    A word that `prose` has in lower case too is no name, and "Americans" is in a source that has
    "American".
    """
    known = {_stem(word) for word in _LETTERS.findall(source.lower())}
    known |= {_stem(word) for word in _LETTERS.findall(prose) if word[0].islower()}
    return {name.lower() for name in names_in(prose) if _stem(name.lower()) not in known}


def _stem(word: str) -> str:
    return word.removesuffix("s")


def _without_heading(line: str) -> str:
    head, colon, rest = line.partition(":")
    longer = [word for word in _LETTERS.findall(head) if len(word) > 3]
    in_title_case = longer and all(word[0].isupper() for word in longer)
    ends = head.rstrip("*\"' ")[-1:]
    return rest if in_title_case and (colon or ends not in ".!?") else line
