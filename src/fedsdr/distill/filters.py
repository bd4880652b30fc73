"""When a rewrite is not to be trained on: small checks, each with one fixed reason.

A check takes the raw answer and the rewrite and returns its reason, or None when all is well.
The `sdft` filter is SDFT's (Yang et al., ACL 2024) with its mistakes mended: two answers without
digits do not agree, "12 30" is not 1230, and a phrase that the raw answer has too is no reason;
plus checks for empty, truncated, looping, refused and other-script text.
"""

import ast
import builtins
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable

from fedsdr.data.answer_parsing import (
    code_of,
    final_number,
    label_of,
    looks_like_code,
    parse_call,
    python_tree,
)

Check = Callable[[str, str], str | None]

# Given the reason of `sdft_reason`: whether the raw answer is kept. Nothing can be learnt from an
# empty answer, so that it falls back under every filter.
FILTERS: dict[str, Callable[[str], bool]] = {
    "none": lambda reason: reason == "empty",
    "sdft": lambda reason: reason != "",
}

_META_PHRASES = re.compile(
    r"reference answer|\b(?:your|my)(?: own)? response\b|"
    r"\A\W*your turn\b|now it['\u2019]s your turn|\bhere is (?:a )?good (?:answer|solution|code)\b|"
    r"\b(?:re-?written|re-?phrased|revised) (?:answer|response)\b|\bin (?:my|your) own words\b",
    re.I,
)
_REFUSALS = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b|"
    r"\A\W*(?:i'?m|i am) (?:very |really )?(?:sorry\W+(?:but )?i\b|unable to\b|not able to\b)|"
    r"\bi (?:can'?t|can ?not|won'?t|am unable to|'m unable to|am not able to|'m not able to) "
    r"(?:\w+ly )?(?:assist|help (?:you )?with|fulfill|comply|provide|complete|answer|"
    r"do (?:that|this)|create|generate|write|perform|access|engage|support|process)\b",
    re.I,
)
_STUTTER = re.compile(r"([^\W\d_][^\n]{0,19}?)\1{9,}")  # one short piece ten times in a row
_LOOP_SHARE = 0.6  # of the 4-grams of words that were there before
_LOOP_LINES = 4  # times that one line of some length stands there
_SCRIPT_SHARE = 0.1  # of the letters, in scripts that were not there before


def is_empty(raw: str, rewrite: str) -> str | None:
    """Nothing but white space and punctuation, while the raw answer had more."""
    words = re.search(r"\w", rewrite) or (rewrite.strip() and not re.search(r"\w", raw))
    return None if words else "empty"


def has_meta_phrase(raw: str, rewrite: str) -> str | None:
    """It talks about answering ("the reference answer"), where the raw answer does not."""
    known = {phrase.lower() for phrase in _META_PHRASES.findall(raw)}
    new = (phrase.lower() not in known for phrase in _META_PHRASES.findall(rewrite))
    return "meta-phrase" if any(new) else None


def loops(raw: str, rewrite: str) -> str | None:
    """It says the same over and over, more than the raw answer does.

    At least 60 % of its 4-grams of words were there before (of 20 or more), one line of three words
    or more stands there four times, or a short piece comes ten times in a row.
    """
    if _repeated_share(rewrite) >= max(_LOOP_SHARE, 1.2 * _repeated_share(raw)):
        return "looping"
    if _most_repeated_line(rewrite) >= max(_LOOP_LINES, 1 + _most_repeated_line(raw)):
        return "looping"
    return "looping" if _STUTTER.search(rewrite) and not _STUTTER.search(raw) else None


def refuses(raw: str, rewrite: str) -> str | None:
    """It declines ("I can't help with that", "As an AI model"), where the raw answer does not."""
    raw, rewrite = (text.replace("\u2019", "'") for text in (raw, rewrite))
    return "refused" if _REFUSALS.search(rewrite) and not _REFUSALS.search(raw) else None


def has_other_script(seen: str, rewrite: str) -> str | None:
    """More than a tenth of its letters are of scripts that `seen` (all that was shown) lacks."""
    scripts = Counter(_script(letter) for letter in rewrite if letter.isalpha())
    known = {_script(letter) for letter in seen if letter.isalpha()}
    other = sum(count for script, count in scripts.items() if script not in known)
    return "other script" if other > _SCRIPT_SHARE * scripts.total() else None


def changes_label(raw: str, rewrite: str) -> str | None:
    """It is not the same label, up to case, white space and the punctuation around it."""
    return "label changed" if label_of(raw) != label_of(rewrite) else None


def changes_number(raw: str, rewrite: str) -> str | None:
    """Its final number differs, or there is none."""
    number = final_number(rewrite)
    return "number changed" if number is None or number != final_number(raw) else None


def changes_call(raw: str, rewrite: str) -> str | None:
    """Its function call is not equal up to the order of keyword arguments, or there is none."""
    call = parse_call(rewrite)
    return "call changed" if call is None or call != parse_call(raw) else None


def breaks_code(raw: str, rewrite: str) -> str | None:
    """It has no code; or, where the raw code is Python, its code does not parse, lacks a name that
    the raw code defines, or calls one that neither it nor the raw code nor Python knows."""
    before, after = python_tree(code_of(raw)), python_tree(code_of(rewrite))
    if before is None:
        return None if any(map(looks_like_code, rewrite.splitlines())) else "code broken"
    if after is None:
        return "code broken"
    missing = _defined(before) - _defined(after)
    unknown = _called(after) - _called(before) - _bound(after) - _bound(before) - set(dir(builtins))
    return "code names changed" if missing or unknown else None


GENERAL_CHECKS: tuple[Check, ...] = (is_empty, has_meta_phrase, refuses, loops)
FAMILY_CHECKS: dict[str, tuple[Check, ...]] = {
    "general": (),
    "maths": (changes_number,),
    "code": (breaks_code,),
    "classification": (changes_label,),
    "functions": (changes_call,),
}


def sdft_reason(family: str, shown: str, raw: str, rewrite: str, finished: bool) -> str:
    """Return the first reason for which the sdft filter keeps the raw answer, or ''.

    `shown` is all of the example that the model was shown, without our own words around it;
    `finished` tells whether it stopped by itself.
    """
    reasons = itertools.chain(
        (check(raw, rewrite) for check in GENERAL_CHECKS),
        [None if finished else "truncated"],
        [has_other_script(shown, rewrite)],
        (check(raw, rewrite) for check in FAMILY_CHECKS[family]),
    )
    return next(filter(None, reasons), "")


def _repeated_share(text: str) -> float:
    words = text.split()
    grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return 1 - len(set(grams)) / len(grams) if len(grams) >= 20 else 0.0


def _most_repeated_line(text: str) -> int:
    lines = (line.strip() for line in text.splitlines())
    counts = Counter(line for line in lines if len(re.findall(r"\w+", line)) >= 3)
    return max(counts.values(), default=0)


def _script(letter: str) -> str:
    """LATIN, CYRILLIC, ...: the first word of the letter's Unicode name. Japanese mixes three."""
    script = "LATIN" if letter.isascii() else unicodedata.name(letter, "UNNAMED").split()[0]
    return "CJK" if script in ("HIRAGANA", "KATAKANA") else script


def _defined(tree: ast.Module) -> set[str]:
    definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return {node.name for node in tree.body if isinstance(node, definitions)}


def _bound(tree: ast.Module) -> set[str]:
    """Every name that the code gives a meaning: definitions, arguments, assignments, imports."""
    return {name for node in ast.walk(tree) for name in _names_of(node)}


def _names_of(node: ast.AST) -> Iterable[str]:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return (node.name,)
        case ast.arg():
            return (node.arg,)
        case ast.Name(ctx=ast.Store()):
            return (node.id,)
        case ast.Import() | ast.ImportFrom():
            return tuple((name.asname or name.name).split(".")[0] for name in node.names)
    return ()


def _called(tree: ast.Module) -> set[str]:
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {func.id for func in calls if isinstance(func, ast.Name)}
