"""The number that an answer ends at, however it is written. Raises for no text."""

import re
import unicodedata
from collections.abc import Iterator
from decimal import Context, Decimal

_SPACE = "[ \u00a0\u2009\u202f]"
# Not the 2 of H2O. A minus is directly before its number, which it does not mark as an item of a
# list ("- 12"), subtract ("10 - 5", "10 -5") or join ("10-5"). See `final_number`.
_NUMBER = re.compile(
    r"(?<![A-Za-z_0-9])(?<![0-9]\.)"
    rf"(?P<minus>(?<![\w)\]])(?<![0-9)\]]{_SPACE})[-\u2212\u2013])?"
    r"[$€£]?(?P<minus2>(?<=[$€£])[-\u2212\u2013])?"
    r"(?:(?P<whole>[0-9]+) (?=[0-9]+\s?/\s?[1-9])(?P<over>[0-9]+)\s?/\s?(?P<part>[1-9][0-9]*)"
    r"|(?P<european>[0-9]{1,3}(?:(?:\.[0-9]{3})+,[0-9]+|(?:\.[0-9]{3}){2,}(?![0-9])))"
    rf"|(?P<spaced>[1-9][0-9]{{0,2}}(?:{_SPACE}[0-9]{{3}})+(?![0-9])(?:[.,][0-9]+)?)"
    r"|(?P<number>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?P<exponent>[eE][-+]?[0-9]{1,4}(?![A-Za-z0-9]))?"
    r"(?:\s?(?:\u00d7|x|\*|\\times|\\cdot)\s?10\s?(?:\^|\*\*)\s?\{?(?P<power>[-\u2212]?[0-9]{1,4})\}?)?"
    r"(?:\s?/\s?(?P<under>[0-9]*[1-9][0-9]*)(?![0-9]|[./][0-9]))?)"
)
_FRACTION = re.compile(
    r"([-\u2212]?)\\[dt]?frac\s?(?:\{([0-9]+)\}|([0-9]))\s?(?:\{([0-9]+)\}|([0-9]))"
)
_SLASHES = re.compile(r"(?<![0-9])[0-9]+(?:/[0-9]+){2,}")  # of a date, 05/10/2024
_LATEX = (("{,}", ","), (",\\!", ","), ("\\!", ""), ("\\,", "\u2009"), ("\\$", "$"))
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_DIVISION = Context(prec=28, traps=[])
_ANSWER_MARK = re.compile(
    r"####|\\boxed|\banswers?\b(?:\s+(?:is|are|equals?)\b|\*{0,2}\s*[:=])", re.I
)
_CLAUSE = re.compile(r"(?:[^.\n]+|\.(?=[0-9]))*")  # to the end of the line or the sentence
# What may stand before "= the result": a sum, whose terms may have units of up to three words.
_TERM = r"[-\u2212($€£\s]*[0-9][0-9.,%\s]*(?:[A-Za-z]+\b\s*){0,3}(?:\)\s*)?"
_SUM = re.compile(
    rf"\s*(?:[A-Za-z]\s*=)?(?:[^A-Za-z]*|{_TERM}(?:[-+*/x\u00d7\u00f7=]\s*{_TERM})+)\Z"
)
_VARIABLE = re.compile(r"\A[A-Za-z]\s*=\s*")  # x = 7


def final_number(text: str) -> Decimal | None:
    r"""Return the number that the text ends at, or None when it has none.

    It is the number after the last "The answer is", "Answer:", "####" or "\boxed" that has one in
    its sentence, behind an equals sign the result ("the answer is 48 clips / 2 = 24 clips" is 24);
    else the last number of the text. So do the scorers of GSM8K (`#### N`, else the last number)
    and MATH (the last \boxed, after the last "="). Forms that they read in different ways, or not:

    ====================================  ========  ==============================================
    text                                  value     as
    ====================================  ========  ==============================================
    1,234.50; $5; 5 %; 10{,}000; 10,\!000  1234.5...  both: separators and signs are dropped
    3/4; \frac{3}{4}; \frac34             0.75      MATH
    3 1/2; 3\frac{1}{2}                   3.5       math-verify; other scorers read 2 or 31/2
    1.5e3; 1.5 \times 10^3                1500      Python's float, as in Qwen2.5-Math's scorer
    1 000; 10\,000                        1000...   MATH, which drops spaces; 12 30 is two numbers
    1.000,00; 1.000.000                   1000...   neither; no other reading makes sense
    1.000; 1,5                            1; 1 and 5  GSM8K (a decimal point); a list
    -5; $-5; 10 - 5; "- 5" (a list)       -5...; 5  GSM8K: a minus is directly before its number
    05/10/2024                            2024      GSM8K: three numbers, of which this is the last
    full-width and other Unicode digits   the same  int() of Python
    ====================================  ========  ==============================================
    """
    for clause in _marked_clauses(text):
        left, _, result = _plain(clause).rpartition("=")
        said = numbers_in(result if len(left) < 500 and _SUM.match(left) else left + result)
        if said:
            return said[0]
    numbers = numbers_in(text)
    return numbers[-1] if numbers else None


def numbers_in(text: str) -> list[Decimal]:
    """Return every number of a text in order, read as `final_number` reads them."""
    return [number for match in _NUMBER.finditer(_plain(text)) for number in _values(match)]


def is_number(text: str) -> bool:
    """Return whether the whole text is one number, or one as in "x = 7"."""
    value = _plain(_VARIABLE.sub("", text[:1000]).rstrip("% ."))
    return len(text) <= 1000 and bool(_NUMBER.fullmatch(value))


def says_its_answer(line: str) -> bool:
    r"""Return whether a number follows "The answer is", "####" or "\boxed" in a line."""
    return any(re.search(r"\d", clause) for clause in _marked_clauses(line))


def _marked_clauses(text: str) -> Iterator[str]:
    """Yield what follows each answer mark in its sentence, up to the next mark; the last first."""
    end = len(text)
    for mark in reversed(list(_ANSWER_MARK.finditer(text))):
        clause = _CLAUSE.match(text, mark.end(), end)
        yield clause.group() if clause else ""
        end = mark.start()


def _values(match: re.Match[str]) -> list[Decimal]:
    """Return the number of a match; two where "3 7/2" is no mixed number."""
    minus = match["minus"] or match["minus2"]
    if match["whole"]:
        whole, over, part = (Decimal(match[name]) for name in ("whole", "over", "part"))
        fraction = _DIVISION.divide(over, part)
        values = [whole + fraction] if over < part else [whole, fraction]
    elif match["european"]:
        values = [Decimal(match["european"].replace(".", "").replace(",", "."))]
    elif match["spaced"]:
        values = [Decimal(re.sub(_SPACE, "", match["spaced"]).replace(",", "."))]
    else:
        power = match["power"] or "0"
        number = match["number"].replace(",", "") + (match["exponent"] or "")
        value = Decimal(number).scaleb(int(power.replace("\u2212", "-")))
        values = [_DIVISION.divide(value, Decimal(match["under"])) if match["under"] else value]
    return [values[0].copy_negate() if minus else values[0], *values[1:]]


def _plain(text: str) -> str:
    """Return the text with ASCII digits, plain fractions and separators for those of LaTeX, and
    commas between the numbers of a date."""
    if not text.isascii():
        text = text.translate(_FULL_WIDTH)
        text = re.sub(r"(?![0-9])\d", lambda digit: str(unicodedata.decimal(digit[0])), text)
    if "\\" in text or "{,}" in text:
        for latex, plain in _LATEX:
            text = text.replace(latex, plain)
        text = _FRACTION.sub(lambda m: f"{m[1] or ' '}{m[2] or m[3]}/{m[4] or m[5]}", text)
    return _SLASHES.sub(lambda date: date[0].replace("/", ", "), text)
