"""A method is a value: phases that run in order, what is sent, and which models result.

To add one, add a line to METHODS and a test to tests/training/test_client.py.
"""

from dataclasses import dataclass

from fedsdr.training.losses import ANCHORED, DISTILLED, PLAIN, Loss
from fedsdr.types import Branch, DataKind, R, S, phase_name


@dataclass(frozen=True)
class Phase:
    """Train one branch on one kind of data, with these branches in the forward.

    `share` scales each branch's output (1 in the paper's Eq. 6). A `returning` phase is skipped
    until an update of the client was accepted, that is in its first round.
    """

    data: DataKind
    forward: tuple[Branch, ...]
    train: Branch
    share: float = 1.0
    returning: bool = False
    loss: Loss = PLAIN

    @property
    def name(self) -> str:
        """The prefix of its metrics: R.raw."""
        return phase_name(self.train, self.data, self.loss.name)

    @property
    def reads_base(self) -> bool:
        """Whether the base reads the rows too, once a client."""
        return self.data == "masked" or self.loss.reference == ()


@dataclass(frozen=True)
class Method:
    """What a client trains, what it sends, and which branches the resulting models have.

    `mixed`: the client's model weights R and S per instance (FedDPA) instead of adding both.
    `afterwards`: phases that run once after the last round, with the final global R.
    """

    name: str
    phases: tuple[Phase, ...]
    sent: tuple[Branch, ...]
    global_model: tuple[Branch, ...]
    client_model: tuple[Branch, ...]
    mixed: bool = False
    afterwards: tuple[Phase, ...] = ()

    @property
    def rewrites(self) -> bool:
        """Whether any phase reads rewritten data."""
        return any(phase.data in ("rewritten", "mixture") for phase in self.all_phases)

    @property
    def all_phases(self) -> tuple[Phase, ...]:
        """The phases of a round and those after the last round."""
        return (*self.phases, *self.afterwards)

    @property
    def private(self) -> tuple[Branch, ...]:
        """The branches that a client trains and does not send."""
        trained = {phase.train for phase in self.all_phases}
        return tuple(b for b in (R, S) if b in trained and b not in self.sent)


def _two_stages(smooth: DataKind, rectify: DataKind) -> tuple[Phase, ...]:
    """Eqs. 7 to 9: S first with R frozen in the forward, then R with S frozen in it."""
    return (Phase(smooth, (R, S), train=S), Phase(rectify, (R, S), train=R))


METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method("plain", (Phase("raw", (R,), train=R),), (R,), (R,), (R,)),
        Method("fedsd", (Phase("mixture", (R,), train=R),), (R,), (R,), (R,)),
        Method("fedsdr", _two_stages("rewritten", "raw"), (R,), (R,), (R, S)),
        Method("dual-raw", _two_stages("raw", "raw"), (R,), (R,), (R, S)),
        Method("distill-rect", _two_stages("rewritten", "rewritten"), (R,), (R,), (R, S)),
        Method("dual-upload", _two_stages("rewritten", "raw"), (R, S), (R, S), (R, S)),
        # Yang et al., NeurIPS 2024, variant T: from a client's second round on, S is trained with
        # the frozen global R in the forward, each at half weight; then R is trained alone. Their
        # code detaches the frozen adapter, keeps its dropout and weights clients equally; ours
        # does not.
        Method(
            "feddpa",
            (
                Phase("raw", (R, S), train=S, share=0.5, returning=True),
                Phase("raw", (R,), train=R),
            ),
            (R,),
            (R,),
            (R, S),
            mixed=True,
        ),
        # The control for a private branch: S is trained after the last round.
        Method(
            "plain-personal",
            (Phase("raw", (R,), train=R),),
            (R,),
            (R,),
            (R, S),
            afterwards=(Phase("raw", (R, S), train=S),),
        ),
        # The control for two branches: one branch on both kinds of data.
        Method(
            "sequential",
            (Phase("rewritten", (R,), train=R), Phase("raw", (R,), train=R)),
            (R,),
            (R,),
            (R,),
        ),
        # Is rewriting needed? Raw answers without the tokens that surprise the base.
        Method("masked", (Phase("masked", (R,), train=R),), (R,), (R,), (R,)),
        # R is trained as it is served, and held near the base; S adds what is private.
        Method(
            "anchored",
            (
                Phase("raw", (R,), train=R, loss=ANCHORED),
                Phase("rewritten", (R, S), train=S),
            ),
            (R,),
            (R,),
            (R, S),
        ),
        Method("anchored-plain", (Phase("raw", (R,), R, loss=ANCHORED),), (R,), (R,), (R,)),
        # Move what S has learnt into R before R is sent.
        Method(
            "fedsdr-down",
            (*_two_stages("rewritten", "raw"), Phase("raw", (R,), train=R, loss=DISTILLED)),
            (R,),
            (R,),
            (R, S),
        ),
        Method("local", (Phase("raw", (S,), train=S),), (), (), (S,)),
    )
}
