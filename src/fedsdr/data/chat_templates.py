"""Examples as token rows with a loss mask, and conversations as prompts for generation.

The whole rendered text is tokenised at once, so that the tokens are those that
`apply_chat_template` gives; the mask follows the pieces that the text was laid out in.
"""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING

from fedsdr.config import Template
from fedsdr.data.layouts import (
    ALPACA,
    ALPACA_WITH_INPUT,
    USE_ALPACA,
    Layout,
    Piece,
    alpaca_layout,
    chat_layout,
    control_tokens,
)
from fedsdr.errors import UserError, choose
from fedsdr.types import Example, TokenRow, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def turns_of(example: Example) -> tuple[Turn, ...]:
    """Return the whole conversation; a blank line joins instruction and input in one user turn."""
    asked = "\n\n".join(part for part in (example.instruction, example.input) if part)
    return (*example.history, Turn("user", asked), Turn("assistant", example.response))


def responses_of(example: Example) -> tuple[str, ...]:
    """Return the content of every assistant turn, in order; the last is `example.response`."""
    return tuple(turn.content for turn in turns_of(example) if turn.role == "assistant")


def prompts_of(example: Example) -> tuple[tuple[Turn, ...], ...]:
    """Return, for every assistant turn in order, the turns before it."""
    turns = turns_of(example)
    return tuple(turns[:i] for i, turn in enumerate(turns) if turn.role == "assistant")


def with_responses(example: Example, responses: Sequence[str]) -> Example:
    """Return the example with every assistant turn replaced, in order.

    Raises ValueError unless there is one response for each of `responses_of(example)`.
    """
    expected = len(responses_of(example))
    if len(responses) != expected:
        raise ValueError(f"row '{example.id}': {len(responses)} responses for {expected} turns")
    new = iter(responses)
    history = tuple(
        replace(turn, content=next(new)) if turn.role == "assistant" else turn
        for turn in example.history
    )
    return replace(example, history=history, response=next(new))


@dataclass(frozen=True)
class Renderer:
    """A template bound to a tokenizer. `render_for` makes it.

    `fingerprint` changes with the template's text and belongs in cache keys; an answer is
    finished at any of `stop_token_ids`. `control` are the special tokens: id -> text.
    """

    tokenizer: "PreTrainedTokenizerBase"
    name: Template
    fingerprint: str
    stop_token_ids: tuple[int, ...]
    layout: Layout
    control: Mapping[int, str]

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Return the tokens after which the model writes the next assistant turn."""
        return _tokenize(self.tokenizer, self.control, self.layout(turns, True))[0]

    def encode(self, example: Example, max_length: int) -> TokenRow:
        """Return the conversation as at most `max_length` tokens with the loss mask.

        Supervised is each assistant turn's content and end-of-turn token, and nothing else, up to
        a token that joins the template's last white space to a content that begins with some.
        Cutting at the end can leave no supervised token: the caller reports such rows. Raises
        UserError for turns that the template refuses.
        """
        try:
            pieces = self.layout(turns_of(example), False)
        except UserError as error:
            raise UserError(f"row '{example.id}': {error}") from error
        tokens, supervised = _tokenize(self.tokenizer, self.control, pieces)
        cut = max(0, len(tokens) - max_length)
        return TokenRow(example.id, tuple(tokens[:max_length]), tuple(supervised[:max_length]), cut)


def render_for(tokenizer: "PreTrainedTokenizerBase", template: Template = "auto") -> Renderer:
    """Return the renderer of a template: the tokenizer's own "chat" template, or "alpaca".

    "auto" is chat where the tokenizer has a chat template, else alpaca. Raises UserError for an
    unknown name, for a tokenizer without a fast version, an end-of-sequence token or (chat) a
    template, and for a chat template whose generation prompt does not lead up to the answer.
    """
    where = f"the tokenizer of '{tokenizer.name_or_path}'"
    if template == "auto":
        template = "chat" if tokenizer.chat_template else "alpaca"
    build = choose(template, {"chat": chat_layout, "alpaca": alpaca_layout}, "model.template")
    if not tokenizer.is_fast:
        raise UserError(f"{where} has no fast version, which the loss mask needs")
    if tokenizer.eos_token is None:
        raise UserError(f"{where} has no end-of-sequence token: set eos_token in its config")
    if template == "chat" and not tokenizer.chat_template:
        raise UserError(f"{where} has no chat template; {USE_ALPACA}")
    layout, control = build(tokenizer), control_tokens(tokenizer)
    probe = layout([Turn("user", "u"), Turn("assistant", "a")], False)
    tokens, supervised = _tokenize(tokenizer, control, probe)
    end_of_turn = [token for token, counts in zip(tokens, supervised, strict=True) if counts][-1]
    source = tokenizer.get_chat_template() if template == "chat" else ALPACA + ALPACA_WITH_INPUT
    identity = repr((source, [piece.text for piece in probe]))
    return Renderer(
        tokenizer=tokenizer,
        name=template,
        fingerprint=hashlib.sha256(identity.encode()).hexdigest()[:16],
        stop_token_ids=tuple(sorted({end_of_turn, tokenizer.eos_token_id})),
        layout=layout,
        control=control,
    )


def preview(row: TokenRow, tokenizer: "PreTrainedTokenizerBase") -> list[tuple[str, bool]]:
    """Return the row decoded, in segments: (text, whether it is supervised)."""
    pairs = zip(row.supervised, row.tokens, strict=True)
    runs = [
        (counts, [t for _, t in run]) for counts, run in itertools.groupby(pairs, itemgetter(0))
    ]
    texts = tokenizer.batch_decode([tokens for _, tokens in runs])
    return [(text, counts) for text, (counts, _) in zip(texts, runs, strict=True)]


def _tokenize(
    tokenizer: "PreTrainedTokenizerBase", control: Mapping[int, str], pieces: Sequence[Piece]
) -> tuple[list[int], list[bool]]:
    """Return the tokens of the whole text and whether each lies in a supervised piece.

    A token that lies partly in one is supervised. Tokens tile the text: one begins where the one
    before it ended, because some tokenizers report their spans without the white space. Where data
    spell the name of a control token, the name is tokenised as ordinary text.
    """
    text = "".join(piece.text for piece in pieces)
    data = [piece.data for piece in pieces for _ in piece.text]
    counts = [piece.supervised for piece in pieces for _ in piece.text]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    tokens: list[int] = []
    supervised: list[bool] = []
    covered = 0
    for token, (start, end) in zip(encoded.input_ids, encoded.offset_mapping, strict=True):
        ids = [token]
        if token in control:  # its span may take in white space, so look at where the name begins
            name = start + max(0, text[start:end].find(control[token]))
            if name < end and data[name]:
                ids = tokenizer(
                    text[start:end], add_special_tokens=False, split_special_tokens=True
                ).input_ids
        tokens += ids
        supervised += [any(counts[min(start, covered) : end])] * len(ids)
        covered = max(covered, end)
    return tokens, supervised
