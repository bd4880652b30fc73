"""What rewriting did to the answers (the paper's Rewrite Paradox), by signs that need no model.

Every sign is a proxy: it reads words and numbers, not meaning. To add one: a function of (raw,
rewrite) that returns a number, or None where it does not apply, and an entry in `SIGNS`.
"""

import ast
import re
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import numpy as np

from fedsdr.data.answer_parsing import (
    code_of,
    final_number,
    kind_of_one,
    label_of,
    numbers_in,
    parse_call,
    python_tree,
)
from fedsdr.evaluation.intervals import bootstrap_interval

Pair = tuple[str, str]  # raw answer, rewrite
Sign = Callable[[str, str], float | None]

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_NAME = re.compile(r"(?<=[^\W\d_] |[,;(] )[A-Z][^\W\d_]+")  # not the first word of a sentence
_NEGATION = re.compile(
    r"\b(?:not|no|never|none|nobody|nothing|neither|nor|nowhere|cannot|without)\b|n['\u2019]t\b",
    re.I,
)
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
    """Return the words of a text, lower case: runs of letters and digits with their apostrophes."""
    return _WORD.findall(text.lower())


def filler_words() -> frozenset[str]:
    """Return the published list in fillers.txt, which names its source."""
    text = resources.files(__package__).joinpath("fillers.txt").read_text("utf-8")
    return frozenset(line for line in text.splitlines() if not line.startswith("#"))


def final_number_kept(raw: str, rewrite: str) -> float | None:
    """Of answers that end at a number: 1 when the rewrite ends at the same one."""
    if kind_of_one(raw) != "number":
        return None
    return float(final_number(raw) == final_number(rewrite))


def numbers_kept(raw: str, rewrite: str) -> float | None:
    """The share of the distinct numbers of the raw answer that the rewrite has."""
    return _share(set(numbers_in(raw)), set(numbers_in(rewrite)))


def names_kept(raw: str, rewrite: str) -> float | None:
    """The share of the distinct capitalised words, but those that begin a sentence or a line, that
    the rewrite has anywhere."""
    return _share({n.lower() for n in _NAME.findall(raw)}, set(words_of(rewrite)))


def negation_lost(raw: str, rewrite: str) -> float | None:
    """Of answers with a negation (not, no, never, n't, ...): 1 when the rewrite has none."""
    return float(not _NEGATION.search(rewrite)) if _NEGATION.search(raw) else None


def negation_new(raw: str, rewrite: str) -> float | None:
    """Of answers without a negation: 1 when the rewrite has one. Longer text has more of them."""
    return None if _NEGATION.search(raw) else float(bool(_NEGATION.search(rewrite)))


def label_kept(raw: str, rewrite: str) -> float | None:
    """Of answers that are a label: 1 when the rewrite is the same label and nothing else."""
    return float(label_of(raw) == label_of(rewrite)) if kind_of_one(raw) == "label" else None


def label_mentioned(raw: str, rewrite: str) -> float | None:
    """Of answers that are a label: 1 when its words stand together in the rewrite."""
    if kind_of_one(raw) != "label":
        return None
    label, text = " ".join(words_of(raw)), " ".join(words_of(rewrite))
    return float(f" {label} " in f" {text} ")


def call_kept(raw: str, rewrite: str) -> float | None:
    """Of answers that are one function call: 1 when the rewrite makes an equal one."""
    return float(parse_call(raw) == parse_call(rewrite)) if kind_of_one(raw) == "call" else None


def code_parses(raw: str, rewrite: str) -> float | None:
    """Of answers that are Python code: 1 when the code of the rewrite (its first fenced block, else
    all of it) parses, too."""
    if kind_of_one(raw) != "code" or _python(raw) is None:
        return None
    return float(_python(rewrite) is not None)


def code_calls_kept(raw: str, rewrite: str) -> float | None:
    """Of answers that are Python code and call something: 1 when the rewrite's code calls exactly
    the same names (`print`, `np.mean`)."""
    before, after = _python(raw), _python(rewrite)
    if kind_of_one(raw) != "code" or before is None or not _calls(before):
        return None
    return float(after is not None and _calls(before) == _calls(after))


SIGNS: dict[str, Sign] = {
    "final number kept": final_number_kept,
    "numbers kept": numbers_kept,
    "capitalised names kept": names_kept,
    "negation lost": negation_lost,
    "negation new": negation_new,
    "label kept": label_kept,
    "label mentioned": label_mentioned,
    "function call kept": call_kept,
    "code still parses": code_parses,
    "code calls the same names": code_calls_kept,
    "template phrase, raw": lambda raw, rewrite: float(bool(_TEMPLATES.search(raw))),
    "template phrase, rewrite": lambda raw, rewrite: float(bool(_TEMPLATES.search(rewrite))),
}


def signs_of(pairs: Sequence[Pair], seed: int) -> dict[str, Any]:
    """Return the mean of every sign over the answers to which it applies, with how many they are
    (`rows`) and a 95 % bootstrap interval over them."""
    return {
        name: mean_of([v for pair in pairs if (v := sign(*pair)) is not None], seed)
        for name, sign in SIGNS.items()
    }


def kept_and_lost(pairs: Sequence[Pair], seed: int) -> dict[str, Any]:
    """Return length ratios, fillers on both sides, and all signs."""
    return {
        **length_ratios(pairs, seed),
        "fillers per 1,000 words, raw": fillers_per_thousand([a for a, _ in pairs]),
        "fillers per 1,000 words, rewrite": fillers_per_thousand([b for _, b in pairs]),
        **signs_of(pairs, seed),
    }


def mean_of(values: Sequence[float], seed: int) -> dict[str, Any]:
    """Return {value, interval, rows}; the value of no rows is None."""
    if not values:
        return {"value": None, "rows": 0}
    interval = bootstrap_interval(values, seed, resamples=500)
    return {"value": float(np.mean(values)), "interval": interval, "rows": len(values)}


def length_ratios(pairs: Sequence[Pair], seed: int) -> dict[str, Any]:
    """Return words of the rewrite / words of the raw answer, split at white space: the mean over
    answers, the 10, 50 and 90 % quantiles, and the ratio of all words together."""
    counts = [(len(raw.split()), len(rewrite.split())) for raw, rewrite in pairs]
    ratios = [after / max(1, before) for before, after in counts]
    found = {"length ratio, mean": mean_of(ratios, seed)}
    for q in (10, 50, 90):
        value = float(np.quantile(ratios, q / 100)) if ratios else None
        found[f"length ratio, {q} % quantile"] = {"value": value, "rows": len(ratios)}
    before, after = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    total = after / before if before else None
    return found | {"length ratio, all words": {"value": total, "rows": len(ratios)}}


def fillers_per_thousand(texts: Sequence[str]) -> dict[str, Any]:
    """Return filler words per 1,000 words over all texts together."""
    fillers = filler_words()
    words = [word for text in texts for word in words_of(text)]
    rate = 1000 * sum(word in fillers for word in words) / len(words) if words else None
    return {"value": rate, "rows": len(texts)}


def _share(wanted: set[Any], found: set[Any]) -> float | None:
    return len(wanted & found) / len(wanted) if wanted else None


def _python(text: str) -> ast.Module | None:
    return python_tree(code_of(text))


def _calls(tree: ast.Module) -> set[str]:
    """Return the names that are called; none of code that is nested too deeply to be written."""
    try:
        return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    except RecursionError:
        return set()
