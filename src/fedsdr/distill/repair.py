"""Ask again for rewrites that a filter refused, naming what must be kept, and choose the best.

Nearest published ideas: DASD (arXiv 2606.00628), SSR (arXiv 2409.04787).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from fedsdr.data.answer_parsing import code_of, python_tree
from fedsdr.data.number_parsing import final_number
from fedsdr.data.text_signs import names_in
from fedsdr.distill.filters import defined_names
from fedsdr.distill.prompts import fill
from fedsdr.distill.records import RewriteRecord

MOST_FACTS = 20  # named in a prompt
# (prompt, answer) -> log p(answer | prompt) of the seed model, in nats a token
Score = Callable[[Sequence[tuple[str, str]]], Sequence[float]]


def facts_of(family: str, raw: str) -> list[str]:
    """Return what a rewrite of this answer must keep, word for word."""
    if family in ("classification", "functions"):
        return [raw.strip()]
    if family == "code":
        tree = python_tree(code_of(raw))
        return sorted(defined_names(tree)) if tree else []
    number = final_number(raw) if family == "maths" else None
    return [*([] if number is None else [f"{number:f}"]), *names_in(raw)[:MOST_FACTS]]


def prompt_again(prompt: str, family: str, raw: str) -> str:
    """Return the rewriting prompt with what must be kept named at its end."""
    facts = facts_of(family, raw)
    # One a line and no full stop: small models copy the punctuation too.
    return "\n".join([f"{prompt}\n\nKeep word for word:\n", *facts]) if facts else prompt


def best_of(
    first: RewriteRecord,
    attempts: Sequence[RewriteRecord],
    prompt: str,
    values: Mapping[str, str],
    score: Score,
) -> RewriteRecord:
    """Return the record of an answer whose first rewrite was refused.

    Of the attempts that pass, the one from which the seed model finds the raw answer likeliest is
    used: log p0(raw | the rewriting prompt with the attempt in the place of the raw answer). If
    none passes, the raw answer is.
    """
    tokens = sum(record.new_tokens for record in (first, *attempts))
    passed = {n: record for n, record in enumerate(attempts, 1) if record.used == "rewrite"}
    if not passed:
        return replace(first, attempts=len(attempts), other_tokens=tokens - first.new_tokens)
    best = next(iter(passed))
    if len(passed) > 1:
        prompts = [fill(prompt, {**values, "response": r.rewrite}) for r in passed.values()]
        scores = score([(text, first.raw) for text in prompts])
        best = max(zip(scores, passed, strict=True), key=lambda pair: pair[0])[1]
    return replace(
        passed[best],
        attempts=len(attempts),
        attempt=best,
        mended=first.reason,
        other_tokens=tokens - passed[best].new_tokens,
    )
