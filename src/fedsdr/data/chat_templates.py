"""Examples as token rows with a loss mask, and conversations as prompts for generation.

The whole rendered text is tokenised at once, so that the tokens are those of
`apply_chat_template`; the mask follows the pieces of the layout.
"""

import bisect
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING

from fedsdr.data.conversation_layouts import (
    ALPACA,
    ALPACA_WITH_INPUT,
    Layout,
    Piece,
    alpaca_layout,
    chat_layout,
)
from fedsdr.data.template_skeletons import USE_ALPACA, control_tokens
from fedsdr.data.tool_messages import with_answer
from fedsdr.errors import UserError, choose
from fedsdr.types import Example, TokenRow, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LAYOUTS = {"chat": chat_layout, "alpaca": alpaca_layout}
# A row of more characters is tokenised up to this many, or to 20 for each token that is kept: the
# tokens of a row of 50 MB would fill the memory.
MAX_CHARACTERS = 1_000_000


def turns_of(example: Example) -> tuple[Turn, ...]:
    """Return the whole conversation; a blank line joins instruction and input in one user turn."""
    asked = "\n\n".join(part for part in (example.instruction, example.input) if part)
    of_asked, of_answer = example.tool_messages
    last = Turn("user", asked, of_asked), Turn("assistant", example.response, of_answer)
    return (*example.history, *last)


def responses_of(example: Example) -> tuple[str, ...]:
    """Return the content of every assistant turn, in order; the last is `example.response`."""
    return tuple(turn.content for turn in turns_of(example) if turn.role == "assistant")


def prompt_of(example: Example) -> tuple[Turn, ...]:
    """Return the turns before the response."""
    return turns_of(example)[:-1]


def with_responses(example: Example, responses: Sequence[str]) -> Example:
    """Return the example with every assistant turn replaced, in order.

    Raises ValueError unless there is one response for each of `responses_of(example)`.
    """
    expected = len(responses_of(example))
    if len(responses) != expected:
        raise ValueError(f"row '{example.id}': {len(responses)} responses for {expected} turns")
    new = iter(responses)
    history = tuple(
        with_answer(turn, next(new)) if turn.role == "assistant" else turn
        for turn in example.history
    )
    last = with_answer(turns_of(example)[-1], next(new))
    messages = example.tool_messages[0], last.tool_messages
    return replace(example, history=history, response=last.content, tool_messages=messages)


@dataclass(frozen=True)
class Renderer:
    """A template bound to a tokenizer, made by `render_for`.

    `fingerprint` changes with the template's text and belongs in cache keys. Generation stops at
    any of `stop_token_ids`. `control` has the special tokens: id -> text.
    """

    tokenizer: "PreTrainedTokenizerBase"
    name: str
    fingerprint: str
    stop_token_ids: tuple[int, ...]
    layout: Layout
    control: Mapping[int, str]

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Return the tokens after which the model writes the next assistant turn."""
        return _tokenize(self.tokenizer, self.control, self.layout(turns, True))[0]

    def encode(self, example: Example, max_length: int) -> TokenRow:
        """Return the conversation as at most `max_length` tokens with the loss mask.

        Supervised are the content and the end-of-turn token of each assistant turn, and nothing
        else, except that a token may join the template's last white space to a content that begins
        with some. Cutting at the end can leave no supervised token: the caller reports such rows.
        `cut` counts the tokens left out; of a very long row it is an estimate. Raises UserError for
        turns that the template refuses.
        """
        try:
            pieces = self.layout(turns_of(example), False)
        except UserError as error:
            raise UserError(f"row '{example.id}': {error}") from error
        kept = _first_characters(pieces, max(MAX_CHARACTERS, 20 * max_length))
        tokens, supervised = _tokenize(self.tokenizer, self.control, kept)
        left_out = sum(len(piece.text) for piece in pieces) - sum(len(p.text) for p in kept)
        cut = max(0, len(tokens) - max_length)
        if left_out:
            cut += round(left_out * len(tokens) / sum(len(p.text) for p in kept))
        return TokenRow(example.id, tuple(tokens[:max_length]), tuple(supervised[:max_length]), cut)


def render_for(tokenizer: "PreTrainedTokenizerBase", template: str = "auto") -> Renderer:
    """Return the renderer of a template: the tokenizer's own "chat" template, or "alpaca".

    "auto" is chat if the tokenizer has a chat template, else alpaca. Raises UserError for an
    unknown name, for a tokenizer without a fast version, without an end-of-sequence token or (chat)
    without a usable template (see `chat_layout`).
    """
    where = f"the tokenizer of '{tokenizer.name_or_path}'"
    if template == "auto":
        template = "chat" if tokenizer.chat_template else "alpaca"
    build = choose(template, LAYOUTS, "model.template")
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


def _first_characters(pieces: Sequence[Piece], most: int) -> list[Piece]:
    """Return the pieces up to `most` characters, the last one cut."""
    kept = []
    for piece in pieces:
        kept.append(replace(piece, text=piece.text[:most]) if len(piece.text) > most else piece)
        most -= len(kept[-1].text)
    return kept


def _tokenize(
    tokenizer: "PreTrainedTokenizerBase", control: Mapping[int, str], pieces: Sequence[Piece]
) -> tuple[list[int], list[bool]]:
    """Return the tokens of the whole text and whether each overlaps a supervised piece.

    Tokens tile the text: each begins where the one before it ended, because some tokenizers report
    spans without the white space. Where data spell the name of a control token, the name is
    tokenised as ordinary text. An unknown token that stands for something else stays.
    """
    text = "".join(piece.text for piece in pieces)
    pieces = [piece for piece in pieces if piece.text]
    ends = list(itertools.accumulate(len(piece.text) for piece in pieces))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    tokens: list[int] = []
    supervised: list[bool] = []
    covered = 0
    for token, (start, end) in zip(encoded.input_ids, encoded.offset_mapping, strict=True):
        ids = [token]
        if token in control and start < end:
            name = text.find(control[token], start, end)  # the span may begin with white space
            spelled, at = name >= 0, max(name, start)
            known = spelled or token != tokenizer.unk_token_id
            if known and pieces[bisect.bisect_right(ends, at)].data:
                ids = tokenizer(
                    text[start:end], add_special_tokens=False, split_special_tokens=True
                ).input_ids
        begin, covered = min(start, covered), max(covered, end)
        overlapped = pieces[bisect.bisect_right(ends, begin) : bisect.bisect_left(ends, end) + 1]
        counts = begin < end and any(piece.supervised for piece in overlapped)
        tokens += ids
        supervised += [counts] * len(ids)
    return tokens, supervised
