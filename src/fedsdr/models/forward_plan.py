"""How rows run through a model: packed, padded or alone, and with which cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from fedsdr.errors import UserError

Losses = Literal["packed", "padded", "single"]
GenerationMode = Literal["shared_cache", "own_cache", "no_cache"]


@dataclass(frozen=True)
class ForwardPlan:
    """How rows run through a model; `fast_path.prepare` chooses it.

    losses       "packed": many rows in one pass without padding; "padded": a padded batch;
                 "single": one row at a time
    generation   "shared_cache": many rows in one pass; "own_cache": one row at a time, with the
                 model's own cache; "no_cache": the same, but each token recomputes the whole row
    plain_head   the logits are head(last hidden state), so that the loss can apply the head
    rope         rotary frequencies: "fixed"; "longrope": of another set for all rows longer than
                 `rope_window`; "dynamic": beyond `rope_window` they depend on earlier passes
    attention    the model's own attention implementation, which a packed model does not use
    """

    losses: Losses = "padded"
    generation: GenerationMode = "own_cache"
    plain_head: bool = False
    rope: Literal["fixed", "longrope", "dynamic"] = "fixed"
    rope_window: int = 0
    attention: str | None = None

    def groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """Split rows of these lengths into groups of indices that may share a forward pass.

        In a padded group no row is shorter than half of the longest one.
        """
        groups: list[list[int]] = []
        for long in (False, True):
            members = [i for i, n in enumerate(lengths) if self.is_long(n) == long]
            if self.losses == "packed":
                groups += [members] if members else []
                continue
            first = None
            for i in sorted(members, key=lambda i: -lengths[i]):
                if first is None or self.losses == "single" or 2 * lengths[i] < first:
                    first = lengths[i]
                    groups.append([])
                groups[-1].append(i)
        return groups

    def is_long(self, length: int) -> bool:
        """Return whether a row needs the long set of rotary frequencies.

        UserError under dynamic scaling, where transformers computes a row differently after a
        longer one, so that its loss would depend on the order of rows.
        """
        if self.rope == "fixed" or length <= self.rope_window:
            return False
        if self.rope == "dynamic":
            raise UserError(
                f"model.name: a row of {length} tokens exceeds the {self.rope_window} positions of "
                "its dynamic RoPE scaling, beyond which results depend on earlier rows; lower "
                "data.max_length (and max_new_tokens), or set another rope_type in its config.json"
            )
        return True


def plan_of(model: nn.Module) -> ForwardPlan:
    """Return the model's plan; without `prepare`, padded batches and the model's own cache."""
    plan: ForwardPlan = getattr(model, "forward_plan", None) or ForwardPlan()
    return plan


def uses_rows(model: nn.Module) -> bool:
    """Return whether rows are packed."""
    return plan_of(model).losses == "packed"


def rope_of(model: nn.Module) -> tuple[Literal["fixed", "longrope", "dynamic"], int]:
    """Return `rope` and `rope_window` of a transformers model."""
    for module in model.modules():
        types = getattr(module, "rope_type", None)
        for kind in types.values() if isinstance(types, dict) else [types]:
            if isinstance(kind, str) and "dynamic" in kind:
                return "dynamic", int(module.original_max_seq_len)  # type: ignore[arg-type]
            if kind == "longrope":
                return "longrope", _longrope_window(module.config)
    return "fixed", 0


def _longrope_window(config: object) -> int:
    parameters = getattr(config, "rope_parameters", None) or {}
    for each in (parameters, *(p for p in parameters.values() if isinstance(p, dict))):
        if window := each.get("original_max_position_embeddings"):
            return int(window)
    return int(config.original_max_position_embeddings)  # type: ignore[attr-defined]
