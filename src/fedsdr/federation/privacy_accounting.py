"""Client-level differential privacy: what is asked for, and what it has cost so far.

An update is clipped to the norm C at the client and counts once, whatever its rows. Noise of
standard deviation z C is added to the sum of a round's updates by the server ("central", which is
trusted), or to each update by its client ("local"). Neighbours are two federations in which one
client holds other data, so that a sum moves by at most 2 C: who takes part is known anyway.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedsdr.errors import UserError

PrivacyMode = Literal["none", "central", "local"]


@dataclass(frozen=True)
class Privacy:
    """`mode` "none" has none, and the rest unread."""

    mode: PrivacyMode = "none"
    clip_norm: float = 1.0  # C
    noise_multiplier: float = 1.0  # z
    delta: float = 1e-5


NO_PRIVACY = Privacy()


def check_accountant() -> None:
    """UserError when the accountant is not installed: a run must not end without its epsilon."""
    try:
        import dp_accounting  # noqa: F401
    except ImportError:
        raise UserError(
            "privacy.mode: needs dp-accounting, which is not installed: pip install -e '.[dp]'"
        ) from None


def epsilon_spent(privacy: Privacy, draws: Sequence[tuple[int, int]]) -> float:
    """Return epsilon at `privacy.delta` after these rounds, each given as (clients, those asked).

    By Google's dp-accounting, in Renyi divergences, for neighbours that replace one client: noise
    of z C is z / 2 times their distance. Central noise gains from a draw without replacement,
    where that bound is the better one. Local noise is counted as if a client took part each time.
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
