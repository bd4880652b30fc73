"""What rewriting did to the answers (the paper's Rewrite Paradox), by signs that need no model.

Each sign is a proxy: it reads words and numbers, not meaning. To add one, write a function of
(raw, rewrite) that returns a number, or None if it does not apply, and add it to `SIGNS`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedsdr.data.answer_parsing import kind_of_one
from fedsdr.data.number_parsing import final_number, numbers_in
from fedsdr.data.text_signs import filler_words, has_template_phrase, names_in, words_of
from fedsdr.distill.filters import has_meta_phrase, refuses
from fedsdr.distill.records import RewriteRecord
from fedsdr.evaluation.intervals import score_interval

Pair = tuple[str, str]  # raw answer, rewrite
Sign = Callable[[str, str], float | None]


def final_number_kept(raw: str, rewrite: str) -> float | None:
    """Return whether the rewrite ends in the same number; None if the answer ends in none."""
    if kind_of_one(raw) != "number":
        return None
    return float(final_number(raw) == final_number(rewrite))


def numbers_kept(raw: str, rewrite: str) -> float | None:
    """Return the share of the answer's distinct numbers that are in the rewrite."""
    return _share(set(numbers_in(raw)), set(numbers_in(rewrite)))


def names_kept(raw: str, rewrite: str) -> float | None:
    """Return the share of the answer's capitalised words inside a sentence that are kept."""
    return _share({name.lower() for name in names_in(raw)}, set(words_of(rewrite)))


SIGNS: dict[str, Sign] = {
    "final number kept": final_number_kept,
    "numbers kept": numbers_kept,
    "capitalised names kept": names_kept,
    "template phrase, raw": lambda raw, rewrite: float(has_template_phrase(raw)),
    "template phrase, rewrite": lambda raw, rewrite: float(has_template_phrase(rewrite)),
    "meta-phrase": lambda raw, rewrite: float(has_meta_phrase(raw, rewrite) is not None),
    "refused": lambda raw, rewrite: float(refuses(raw, rewrite) is not None),
}


def signs_seen(raw: str, rewrite: str) -> list[str]:
    """Return what is wrong with one rewrite: what it loses, and the other signs that it shows."""
    found = {name: sign(raw, rewrite) for name, sign in SIGNS.items()}
    lost = [n for n, v in found.items() if n.endswith(" kept") and v is not None and v < 1]
    shown = [n for n, v in found.items() if not n.endswith((" kept", ", raw")) and v]
    return [n.replace(" kept", " lost") for n in lost] + [
        n.removesuffix(", rewrite") for n in shown
    ]


def signs_of(pairs: Sequence[Pair], seed: int) -> dict[str, Any]:
    """Return length ratios, filler words and the mean of every sign over the answers it applies to.

    A length ratio is words of the rewrite / words of the answer, split at white space.
    """
    ratios = [len(rewrite.split()) / max(1, len(raw.split())) for raw, rewrite in pairs]
    median = float(np.median(ratios)) if ratios else None
    return {
        "length ratio, mean": mean_of(ratios, seed),
        "length ratio, 50 % quantile": {"value": median, "rows": len(ratios)},
        "fillers per 1,000 words, raw": fillers_per_thousand([raw for raw, _ in pairs]),
        "fillers per 1,000 words, rewrite": fillers_per_thousand([new for _, new in pairs]),
    } | {
        name: mean_of([value for pair in pairs if (value := sign(*pair)) is not None], seed)
        for name, sign in SIGNS.items()
    }


def record_signs(records: Sequence[RewriteRecord], seed: int) -> dict[str, Any]:
    """Return the signs of rewrites and how many were cut at the limit of new tokens."""
    signs = signs_of([(record.raw, record.rewrite) for record in records], seed)
    return signs | {"truncated": mean_of([float(not r.finished) for r in records], seed)}


def mean_of(values: Sequence[float], seed: int) -> dict[str, Any]:
    """Return {value, 95 % interval, rows}; the value of no rows is None."""
    if not values:
        return {"value": None, "rows": 0}
    interval = score_interval(values, seed, binary=set(values) <= {0.0, 1.0})
    return {"value": float(np.mean(values)), "interval": interval, "rows": len(values)}


def fillers_per_thousand(texts: Sequence[str]) -> dict[str, Any]:
    """Return filler words per 1,000 words over all texts together."""
    words = [word for text in texts for word in words_of(text)]
    fillers = sum(word in filler_words() for word in words)
    return {"value": 1000 * fillers / len(words) if words else None, "rows": len(texts)}


def _share(wanted: set[Any], found: set[Any]) -> float | None:
    return len(wanted & found) / len(wanted) if wanted else None
