"""What an answer says: its function call, code or label, and of which kind it is.

Pure functions that raise for no text: prompts, filters and metrics read what models wrote.
"""

import ast
import json
import re
import textwrap
import unicodedata
import warnings
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from fedsdr.data.number_parsing import is_number, says_its_answer
from fedsdr.data.tool_calls import AFTER_CALL, BEFORE_CALL

Kind = Literal["label", "number", "call", "code", "text"]

LABEL_WORDS = 5  # a label has at most so many words
# Quotes, and what ends a sentence or a clause, in the scripts that have signs of their own.
_AROUND_LABEL = " .,:;!?\"'`*“”„‟‘’‚‛«»‹›「」『』。．｡、，：；！？…؟،؛۔।॥։።။។"  # noqa: RUF001

MAX_CODE = 100_000  # characters; longer text is not parsed as Python, which would fill the memory

_FENCE = re.compile(r"```[^\n`]*\n")
_CODE_LINE = re.compile(
    r"[{}]\s*$|[=()\[\]].*;\s*$|^\s*(?:</?[A-Za-z!][^>]*>|#include\b|//|\$\w+\s*=|"
    r"(?:SELECT|INSERT INTO|UPDATE|DELETE FROM|CREATE|ALTER TABLE|FROM|WHERE|GROUP BY|ORDER BY)\b|"
    r"import\s+[\w.]+(?:\s+as\s+\w+)?\s*;?$|from\s+[\w.]+\s+import\b|import\s.*\bfrom\s*['\"]|"
    r"(?:def|class|function)\s+\w+\s*[({:]|(?:const|let|var)\s+\w+\s*[=:;]|"
    r"(?:public|private|protected)\s+\w.*[({;=]|return\b[^ ]*\s+\S+;\s*$|print\s*\(|"
    r"(?:for|if|while)\b(?:\s*\(|.*:\s*$))"
)
# What only code has: prose such as "positive", "Answer: yes" or "well-known" is valid Python too.
_CODE_NODES = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AugAssign, ast.For,
    ast.While, ast.If, ast.With, ast.Try, ast.Import, ast.ImportFrom, ast.Return,
    ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp,
)  # fmt: skip


@dataclass(frozen=True)
class Call:
    """A function call. Equal up to the order of keyword arguments, spacing, quotes and 1 == 1.0.

    Values are in a canonical form in which True differs from 1 and "1" from 1, while a tuple and a
    list of the same items are one. What is not a literal is kept as its source text.
    """

    name: str
    args: tuple[Hashable, ...]
    kwargs: frozenset[tuple[str, Hashable]]


def parse_call(text: str) -> Call | None:
    """Return the one function call that the text makes, or None.

    Read as Python, `name(1, key="value")`, or as JSON, `{"name": ..., "arguments": {...}}`, alone
    or in a `<tool_call>` block; a text of several blocks is one call of them all. The call is the
    whole text, else the whole of its first code block, else the only line (or lines that all say
    the same) that is a call; two different calls are None.
    """
    whole = _whole_call(text) or _whole_call(code_of(text))
    if whole:
        return whole
    calls = {call for line in text.splitlines() if (call := _whole_call(line))}
    return calls.pop() if len(calls) == 1 else None


def code_of(text: str) -> str:
    """Return the content of the first fenced block (closed or not), else the text itself.

    Single backticks around the whole text are dropped. Indentation is kept.
    """
    fence = _FENCE.search(text)
    if fence:
        body, closed, _ = text[fence.end() :].partition("```")
        return body.rstrip(" \t").removesuffix("\n") if closed else body
    stripped = text.strip()
    quoted = len(stripped) > 2 and stripped[0] == stripped[-1] == "`" and stripped.count("`") == 2
    return stripped[1:-1] if quoted else text


def python_tree(code: str) -> ast.Module | None:
    """Return the syntax tree of Python code that does something, or None.

    A common indentation is dropped, as the body of a function has one. Words that happen to be
    valid Python ("positive", "Answer: yes") are not code: there must be a definition, an
    assignment, a call, a comprehension or a control statement.
    """
    tree = None if len(code) > MAX_CODE else _parsed(textwrap.dedent(code))
    if tree is None or not any(_is_code(node) for node in ast.walk(tree)):
        return None
    return tree


def _is_code(node: ast.AST) -> bool:
    called = node.func if isinstance(node, ast.Call) else None  # "10 (ten)" calls nothing
    return isinstance(node, _CODE_NODES) or isinstance(called, ast.Name | ast.Attribute)


def parses(code: str) -> bool:
    """Return whether the text is Python code that parses (see `python_tree`). No other language."""
    return python_tree(code) is not None


def label_of(text: str) -> str:
    """Return a label in NFC without case, extra space, and punctuation or quotes around it."""
    label = " ".join(unicodedata.normalize("NFC", text.casefold()).split())
    return label.strip(_AROUND_LABEL) or label


def looks_like_code(line: str) -> bool:
    """Return whether one line reads like code of some language: C-like, SQL, HTML, Python."""
    # Some patterns look from each sign to the end of the line: bound the time of a long one.
    return bool(_CODE_LINE.search(line if len(line) <= 1000 else line[:500] + line[-500:]))


def kind_of_one(response: str) -> Kind:
    r"""Return which kind of answer one response is; the first that fits:

    number: the whole is a number (or "x = 7"), or its last line has one after "The answer is",
    "####" or "\boxed"; call: the whole is one function call; code: it has a fenced block, or
    parses as Python, or at least half of its lines look like code of some language; label: one
    line of at most `LABEL_WORDS` words; else text.
    """
    text = response.strip()
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return "text"
    if says_its_answer(lines[-1]) or is_number(text):
        return "number"
    if _whole_call(text):
        return "call"
    looks = sum(looks_like_code(line) for line in lines)
    if "```" in text or 2 * looks >= len(lines) or parses(response):
        return "code"
    if len(lines) == 1 and len(text.split(maxsplit=LABEL_WORDS)) <= LABEL_WORDS:
        return "label"
    return "text"


def kind_of(responses: Sequence[str]) -> Kind:
    """Return the kind that more than half of a client's responses have, else text.

    Labels repeat, short replies of a chat do not: where the short responses are the majority and
    more than half of them differ, the kind is text.
    """
    kinds = [kind_of_one(response) for response in responses]
    kind, count = Counter(kinds).most_common(1)[0] if kinds else ("text", 1)
    if 2 * count <= len(kinds):
        return "text"
    if kind == "label":
        distinct = {r.strip().lower() for r, k in zip(responses, kinds, strict=True) if k == kind}
        return "label" if 2 * len(distinct) <= count else "text"
    return kind


def _whole_call(text: str) -> Call | None:
    """The call that the text is, with nothing beside it but white space and backticks."""
    text = text.strip().strip("`").strip()
    if text.startswith(BEFORE_CALL):
        return _tagged_calls(text)
    return _json_call(text) if text.startswith("{") else _python_call(text)


def _tagged_calls(text: str) -> Call | None:
    """The call in a `<tool_call>` block; those of several blocks as the arguments of one call."""
    blocks = [block.rstrip() for block in text.split(BEFORE_CALL)[1:]]
    if not all(block.endswith(AFTER_CALL) for block in blocks):
        return None
    calls = [call for b in blocks if (call := _json_call(b.removesuffix(AFTER_CALL)))]
    if len(calls) < len(blocks):
        return None
    return calls[0] if len(calls) == 1 else Call("", tuple(calls), frozenset())


def _python_call(text: str) -> Call | None:
    if "(" not in text:
        return None
    tree = _parsed(text.rstrip(";"))
    if tree is None or len(tree.body) != 1 or not isinstance(tree.body[0], ast.Expr):
        return None
    call = tree.body[0].value
    names = [word.arg or "**" for word in call.keywords] if isinstance(call, ast.Call) else []
    if not isinstance(call, ast.Call) or len(set(names)) < len(names):
        return None
    try:
        name = ast.unparse(call.func)
        args = tuple(_canonical(_value(node)) for node in call.args)
        values = [_canonical(_value(word.value)) for word in call.keywords]
    except RecursionError:
        return None
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    return Call(name, args, frozenset(zip(names, values, strict=True)))


def _json_call(text: str) -> Call | None:
    try:
        made = json.loads(text, parse_constant=str)
        arguments = made.get("arguments", made.get("parameters"))
        if isinstance(arguments, str):
            arguments = json.loads(arguments, parse_constant=str)
        if not isinstance(made.get("name"), str) or not isinstance(arguments, dict):
            return None
        pairs = frozenset((key, _canonical(value)) for key, value in arguments.items())
    except (ValueError, RecursionError):
        return None
    return Call(made["name"], (), pairs)


@dataclass(frozen=True)
class _Source:
    """An argument that is not a literal."""

    code: str


def _value(node: ast.expr) -> object:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, MemoryError):
        return _Source(ast.unparse(node))


def _canonical(value: object) -> Hashable:
    if isinstance(value, list | tuple):
        return ("sequence", tuple(_canonical(item) for item in value))
    if isinstance(value, set):
        return ("set", frozenset(_canonical(item) for item in value))
    if isinstance(value, dict):
        return ("dict", frozenset((_canonical(k), _canonical(v)) for k, v in value.items()))
    if isinstance(value, int | float | complex) and not isinstance(value, bool):
        return ("number", value)
    return (type(value).__name__, str(value))


def _parsed(code: str) -> ast.Module | None:
    if len(code) > MAX_CODE:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a stray backslash in a model's answer
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
