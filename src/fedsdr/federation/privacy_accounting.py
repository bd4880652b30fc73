"""Client-level differential privacy: its settings, and epsilon after the rounds so far.

A client clips its update to the norm C, and every update has weight 1. Noise of standard deviation
z C is added to the sum of a round's updates by the trusted server ("central"), or to each update by
its client ("local"). Neighbouring federations differ in the data of one client, so a sum changes by
at most 2 C. Who takes part is not hidden.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedsdr.errors import UserError

PrivacyMode = Literal["none", "central", "local"]


@dataclass(frozen=True)
class Privacy:
    """The settings; with `mode` "none" the others are not used."""

    mode: PrivacyMode = "none"
    clip_norm: float = 1.0  # C
    noise_multiplier: float = 1.0  # z
    delta: float = 1e-5


NO_PRIVACY = Privacy()


def check_accountant() -> None:
    """UserError when dp-accounting is not installed: a private run must report its epsilon."""
    try:
        import dp_accounting  # noqa: F401
    except ImportError:
        raise UserError(
            "privacy.mode: needs dp-accounting, which is not installed: pip install 'fedsdr[dp]'"
        ) from None


def epsilon_spent(privacy: Privacy, draws: Sequence[tuple[int, int]]) -> float:
    """Return epsilon at `privacy.delta` after these rounds, each given as (clients, sampled).

    Computed by Google's dp-accounting with Renyi divergences, for neighbours that replace one
    client: noise of z C is z / 2 times their distance. Central noise is amplified by sampling
    without replacement, where that bound is the better one. Local noise is counted as if a client
    took part in every round.
    """
    from dp_accounting.dp_event import DpEvent, GaussianDpEvent, SampledWithoutReplacementDpEvent
    from dp_accounting.privacy_accountant import NeighboringRelation
    from dp_accounting.rdp import RdpAccountant

    noise = GaussianDpEvent(privacy.noise_multiplier / 2)

    def drawn(clients: int, asked: int) -> DpEvent:
        hidden = privacy.mode == "central" and asked < clients
        return SampledWithoutReplacementDpEvent(clients, asked, noise) if hidden else noise

    def epsilon(rounds: Mapping[DpEvent, int]) -> float:
        accountant = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
        for event, count in rounds.items():
            accountant.compose(event, count)
        return float(accountant.get_epsilon(privacy.delta))

    return min(
        epsilon({noise: len(draws)}),
        epsilon(Counter(drawn(clients, asked) for clients, asked in draws)),
    )
