"""How the updates of a round become one pseudo-gradient, as values.

To add an aggregation, write a function as in combining.py and its line in AGGREGATIONS.
"""

from dataclasses import dataclass

from fedsdr.algorithms.combining import Combine, Combined, RoundContext, mean
from fedsdr.algorithms.product_aggregation import product_mean
from fedsdr.algorithms.robust_aggregation import median, multi_krum, trimmed_mean
from fedsdr.algorithms.rotated_aggregation import rotated_mean

__all__ = ["AGGREGATIONS", "Aggregation", "Combined", "RoundContext"]

LORA_A, LORA_B = "lora_A", "lora_B"  # how the names of the factors end


@dataclass(frozen=True)
class Aggregation:
    """A function from the updates of a round to one pseudo-gradient, and which factors it is of.

    Factors that are not sent keep their common start at the server. At a client they are frozen
    there too, or trained and kept in its own folder, as S is.
    """

    combine: Combine
    unsent: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    ranks: bool = False  # clients may have ranks of their own

    @property
    def kept(self) -> tuple[str, ...]:
        """The factors that a client trains and does not send."""
        return tuple(factor for factor in self.unsent if factor not in self.frozen)

    @property
    def is_mean(self) -> bool:
        """Whether it is the weighted mean of the updates, as scaffold and central privacy need."""
        return self.combine is mean


AGGREGATIONS: dict[str, Aggregation] = {
    "mean": Aggregation(mean),
    # A is frozen at its common start: the mean of B is exact (FFA-LoRA, arXiv 2403.12313).
    "ffa": Aggregation(mean, unsent=(LORA_A,), frozen=(LORA_A,)),
    # B stays with the client (FedSA-LoRA, arXiv 2410.01463).
    "share-a": Aggregation(mean, unsent=(LORA_B,)),
    "product": Aggregation(product_mean, ranks=True),
    "rotated": Aggregation(rotated_mean),
    "median": Aggregation(median),
    "trimmed-mean": Aggregation(trimmed_mean),
    "multi-krum": Aggregation(multi_krum),
}
