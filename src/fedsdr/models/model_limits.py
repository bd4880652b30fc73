"""What a model can hold: the tokens of its embedding and the positions of its window."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fedsdr.config import Config
from fedsdr.errors import UserError

# OPT and BioGPT keep two more rows in their tables of positions than they have positions.
MAX_OFFSET = 2


@dataclass(frozen=True)
class ModelLimits:
    """The limits of a model and its tokenizer.

    vocabulary  rows of the embedding
    positions   tokens of its window, None where the configuration names none
    fixed       whether positions are read from a table, so that there are none beyond it
    unknown     the token that stands for characters that the tokenizer does not have, if any
    """

    vocabulary: int
    positions: int | None
    fixed: bool
    unknown: int | None


def limits_of(model: Any, tokenizer: Any) -> ModelLimits:
    """Return the limits of a model, which may be on the meta device."""
    embedding = model.get_input_embeddings()
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        positions = None
    special = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
    unknown = tokenizer.unk_token_id
    return ModelLimits(
        vocabulary=embedding.weight.shape[0],
        positions=positions,
        fixed=positions is not None and _has_table(model, embedding, positions),
        unknown=None if unknown in special else unknown,  # GPT-2's is its end of text
    )


def check_limits(
    limits: ModelLimits, config: Config, stop_ids: Collection[int], *, rewrites: bool
) -> str:
    """Return a note when rows and answers can be longer than the model's window, '' if not.

    The longest are a row of `data.max_length` and as many new tokens as the teacher or the
    evaluation may write. UserError where the model has no positions beyond its window, or where it
    does not have the tokens at which generation stops.
    """
    check_tokens(limits, stop_ids, "model.name: the end of a turn or of a sequence")
    new = {"evaluation.max_new_tokens": config.evaluation.max_new_tokens}
    if rewrites and config.teacher.engine != "openai":
        new["teacher.max_new_tokens"] = config.teacher.max_new_tokens
    key = max(new, key=new.__getitem__)
    longest = config.data.max_length + new[key]
    if limits.positions is None or longest <= limits.positions:
        return ""
    sizes = (
        f"data.max_length = {config.data.max_length:,} and {key} = {new[key]:,} make "
        f"{longest:,} tokens, but the model has {limits.positions:,} positions"
    )
    if limits.fixed:
        raise UserError(f"{sizes}; lower one of them")
    return f"{sizes}: it was not trained on longer texts"


def check_tokens(limits: ModelLimits, tokens: Collection[int], where: str) -> None:
    """UserError for a token that the embedding does not have."""
    if tokens and (largest := max(tokens)) >= limits.vocabulary:
        raise UserError(
            f"{where}: token {largest} is not in the model's embedding, which has "
            f"{limits.vocabulary:,} rows; use the tokenizer that belongs to the model"
        )


def unknown_note(counts: Sequence[int]) -> str:
    """Return a note when rows have the unknown token, '' if not; `counts` has each row's."""
    if not any(counts):
        return ""
    return (
        f"{sum(counts):,} tokens in {sum(map(bool, counts)):,} of {len(counts):,} rows are the "
        "tokenizer's unknown token: the model does not see the characters that they stand for"
    )


def _has_table(model: nn.Module, embedding: nn.Module, positions: int) -> bool:
    """Return whether the model has a table (a parameter or a buffer) with a row per position."""
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    tables += [buffer for _, buffer in model.named_buffers() if buffer.dim() > 1]
    own = getattr(embedding, "weight", None)
    lengths = {size for table in tables if table is not own for size in table.shape[:-1]}
    return any(positions <= length <= positions + MAX_OFFSET for length in lengths)
