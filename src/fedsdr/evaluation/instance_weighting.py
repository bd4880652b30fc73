"""FedDPA's instance-wise dynamic weighting of the shared and the private branch.

    w_R = 0.5 * mean cosine(h(instance), h(e)) over 5 random local examples e,   w_S = 1 - w_R

h is the base model's last hidden state at the last prompt token (Yang et al., NeurIPS 2024,
section 3.4; the factor 0.5 and the 5 examples are those of their code).
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedsdr.data.chat_templates import prompt_of
from fedsdr.evaluation.held_out import Losses
from fedsdr.models.packing import last_states
from fedsdr.models.two_branch import BranchedModel
from fedsdr.seeds import seed_for
from fedsdr.types import Decoding, Example, Generate, Generation, GenerationRequest, R, S, Turn


@dataclass(frozen=True)
class MixedModel:
    """A client's model whose branch weights are computed for each instance."""

    model: BranchedModel
    prompt: Callable[[Sequence[Turn]], list[int]]
    examples: Sequence[Example]  # the client's own training rows
    seed: int

    @cached_property
    def _local_states(self) -> Tensor:
        chosen = random.Random(seed_for(self.seed, "feddpa")).sample(
            list(self.examples), min(5, len(self.examples))
        )
        return torch.stack([self._state(prompt_of(example)) for example in chosen])

    def _state(self, turns: Sequence[Turn]) -> Tensor:
        with self.model.using(), torch.inference_mode():
            return last_states(self.model.model, [self.prompt(turns)])[0]

    def weight_of_shared(self, turns: Sequence[Turn]) -> float:
        """Return w_R of a prompt."""
        state = self._state(turns)
        cosines = torch.cosine_similarity(self._local_states, state[None], dim=-1)
        return 0.5 * float(cosines.mean())

    @contextmanager
    def using(self, turns: Sequence[Turn]) -> Iterator[None]:
        """Within the context, the forward has both branches with the weights of this prompt."""
        shared = self.weight_of_shared(turns)
        with self.model.using(R, S, weights={R: shared, S: 1 - shared}):
            yield

    def losses(self, losses: Losses) -> Losses:
        """Return `losses` with per-example branch weights."""

        def mixed(examples: Sequence[Example]) -> list[tuple[float, int]]:
            results: list[tuple[float, int]] = []
            for example in examples:
                with self.using(prompt_of(example)):
                    results += losses([example])
            return results

        return mixed

    def generate(self, generate: Generate) -> Generate:
        """Return `generate` with per-request branch weights."""

        def mixed(
            requests: Sequence[GenerationRequest], decoding: Decoding
        ) -> Iterator[Generation]:
            for request in requests:
                with self.using(request.turns):
                    yield from list(generate([request], decoding))

        return mixed
