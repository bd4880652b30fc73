"""Which rewrites are not trained on: filters, made of small checks with one fixed reason each.

The `sdft` filter is that of SDFT (Yang et al., ACL 2024) with its faults fixed: two answers without
digits do not agree, "12 30" is not 1230, and a phrase that the raw answer has too is no reason.
Added are checks for empty, truncated, looping, refusing and other-script text.
"""

import ast
import builtins
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fedsdr.data.answer_parsing import code_of, label_of, looks_like_code, parse_call, python_tree
from fedsdr.data.number_parsing import final_number
from fedsdr.data.text_signs import names_in, repeated_grams


@dataclass(frozen=True)
class Rewrite:
    """What a filter judges. `shown` is all of the example that the model saw, without the prompt's
    own words; `finished` tells whether the model ended its text itself."""

    family: str
    shown: str
    raw: str
    text: str
    finished: bool = True


Filter = Callable[[Rewrite], str]  # -> the reason to keep the raw answer, "" to use the rewrite
Check = Callable[[str, str], str | None]  # (raw answer, rewrite) -> its reason, None if all is well

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
_LOOP_SHARE = 0.6  # of the 4-grams of words that occurred before
_LOOP_LINES = 4  # occurrences of one line
_SCRIPT_SHARE = 0.1  # of the letters, in scripts that were not shown


def is_empty(raw: str, rewrite: str) -> str | None:
    """It is white space and punctuation alone, and the raw answer is not."""
    words = re.search(r"\w", rewrite) or (rewrite.strip() and not re.search(r"\w", raw))
    return None if words else "empty"


def has_meta_phrase(raw: str, rewrite: str) -> str | None:
    """It talks about answering ("the reference answer"), and the raw answer does not."""
    known = {phrase.lower() for phrase in _META_PHRASES.findall(raw)}
    new = (phrase.lower() not in known for phrase in _META_PHRASES.findall(rewrite))
    return "meta-phrase" if any(new) else None


def loops(raw: str, rewrite: str) -> str | None:
    """It repeats itself more than the raw answer does.

    At least 60 % of its 4-grams of words (of 20 or more) occurred before, one line of three words
    or more occurs four times, or a short piece occurs ten times in a row.
    """
    if _repeated_share(rewrite) >= max(_LOOP_SHARE, 1.2 * _repeated_share(raw)):
        return "looping"
    if _most_repeated_line(rewrite) >= max(_LOOP_LINES, 1 + _most_repeated_line(raw)):
        return "looping"
    return "looping" if _STUTTER.search(rewrite) and not _STUTTER.search(raw) else None


def refuses(raw: str, rewrite: str) -> str | None:
    """It declines ("I can't help with that", "As an AI model"), and the raw answer does not."""
    raw, rewrite = (text.replace("\u2019", "'") for text in (raw, rewrite))
    return "refused" if _REFUSALS.search(rewrite) and not _REFUSALS.search(raw) else None


def has_other_script(seen: str, rewrite: str) -> str | None:
    """More than a tenth of its letters belong to scripts that do not occur in `seen`."""
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
    """It has no code; or, if the raw code is Python, its code does not parse, lacks a name that the
    raw code defines, or calls a name that neither it nor the raw code nor Python defines."""
    before, after = python_tree(code_of(raw)), python_tree(code_of(rewrite))
    if before is None:
        return None if any(map(looks_like_code, rewrite.splitlines())) else "code broken"
    if after is None:
        return "code broken"
    missing = defined_names(before) - defined_names(after)
    unknown = _called(after) - _called(before) - _bound(after) - _bound(before) - set(dir(builtins))
    return "code names changed" if missing or unknown else None


def loses_name(raw: str, rewrite: str) -> str | None:
    """It lacks a capitalised word that the raw answer has inside a sentence."""
    words = set(re.findall(r"[^\W_]+", rewrite.lower()))
    return None if words.issuperset(name.lower() for name in names_in(raw)) else "name lost"


GENERAL_CHECKS: tuple[Check, ...] = (is_empty, has_meta_phrase, refuses, loops)
FAMILY_CHECKS: dict[str, tuple[Check, ...]] = {
    "general": (),
    "maths": (changes_number,),
    "code": (breaks_code,),
    "classification": (changes_label,),
    "functions": (changes_call,),
}


def sdft(rewrite: Rewrite) -> str:
    """Keep the raw answer for the first reason that a general check or one of the family finds."""
    raw, text = rewrite.raw, rewrite.text
    reasons = itertools.chain(
        (check(raw, text) for check in GENERAL_CHECKS),
        [None if rewrite.finished else "truncated"],
        [has_other_script(rewrite.shown, text)],
        (check(raw, text) for check in FAMILY_CHECKS[rewrite.family]),
    )
    return next(filter(None, reasons), "")


def repair(rewrite: Rewrite) -> str:
    """As `sdft`, and a rewrite in prose must have the names of the raw answer."""
    in_prose = rewrite.family in ("general", "maths")
    return sdft(rewrite) or (in_prose and loses_name(rewrite.raw, rewrite.text)) or ""


def unless_empty(rewrite: Rewrite) -> str:
    """Use every rewrite that has content: nothing can be learnt from an empty answer."""
    return is_empty(rewrite.raw, rewrite.text) or ""


FILTERS: dict[str, Filter] = {"none": unless_empty, "sdft": sdft, "repair": repair}
ASKS_AGAIN = frozenset({"repair"})  # filters whose refused rewrites are asked for again


def _repeated_share(text: str) -> float:
    repeated, grams = repeated_grams(text.split())
    return repeated / grams if grams >= 20 else 0.0


def _most_repeated_line(text: str) -> int:
    lines = (line.strip() for line in text.splitlines())
    counts = Counter(line for line in lines if len(re.findall(r"\w+", line)) >= 3)
    return max(counts.values(), default=0)


def _script(letter: str) -> str:
    """Return LATIN, CYRILLIC, ...: the first word of the letter's Unicode name."""
    script = "LATIN" if letter.isascii() else unicodedata.name(letter, "UNNAMED").split()[0]
    return "CJK" if script in ("HIRAGANA", "KATAKANA") else script  # Japanese mixes the three


def defined_names(tree: ast.Module) -> set[str]:
    """Return the names of the functions and classes at the top of the code."""
    definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return {node.name for node in tree.body if isinstance(node, definitions)}


def _bound(tree: ast.Module) -> set[str]:
    """Return the names that the code binds: definitions, arguments, assignments, imports."""
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
