"""The frozen values that pass between rooms.

An engine carries `ClientTask` to a client and `ClientUpdate` or `ClientFault` back. None of them
has a field for a private branch, raw text or rewrites. The reason of a fault is text; over Flower
it is the text of a `Refusal` or the name of an exception's type.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from fedsdr.config_keys import UpdateDtype

if TYPE_CHECKING:  # imports torch, which a finished run does not need
    from fedsdr.tensors import Tensors

Branch = Literal["R", "S"]  # R is shared and aggregated, S is private and stays
R: Branch = "R"
S: Branch = "S"
BRANCHES: tuple[Branch, ...] = (R, S)
# The answers that a phase trains on; masked: raw, without the tokens that the base finds unlikely.
DataKind = Literal["raw", "rewritten", "mixture", "masked"]
DATA_KINDS: tuple[DataKind, ...] = get_args(DataKind)
LossKind = Literal["plain", "anchored", "distilled"]
LOSS_KINDS: tuple[LossKind, ...] = get_args(LossKind)


def phase_name(train: Branch, data: DataKind, loss: LossKind = "plain") -> str:
    """Return the prefix of a phase's metrics: R.raw, R.raw.anchored."""
    return f"{train}.{data}" if loss == "plain" else f"{train}.{data}.{loss}"


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation.

    `tool_messages` has its tools, calls and results for chat templates that write them themselves
    (data/tool_messages.py); '' without any. `content` has them as text.
    """

    role: Literal["system", "user", "assistant"]
    content: str
    tool_messages: str = field(default="", repr=False)  # runs keep hashes of repr(rows)


@dataclass(frozen=True, slots=True)
class Example:
    """One instruction (c), its input (x) and the gold response (y).

    A conversation of several turns keeps the earlier ones in `history`; `instruction` is then its
    last user message and `response` its last assistant message. Every assistant turn is trained.
    `tool_messages` are those of these two turns.
    """

    id: str
    instruction: str
    input: str
    response: str
    category: str = ""
    history: tuple[Turn, ...] = ()
    tool_messages: tuple[str, str] = field(default=("", ""), repr=False)


@dataclass(frozen=True)
class ClientData:
    """The data of one client. `rewritten` is empty before distillation; then it has one example for
    each of `raw`, with the same ids in the same order. `validation` rows are held out like the test
    rows, and choose a round or a setting."""

    client_id: str
    raw: tuple[Example, ...]
    rewritten: tuple[Example, ...]
    test: tuple[Example, ...]
    validation: tuple[Example, ...] = ()


@dataclass(frozen=True)
class LocalSettings:
    """What a client must know of the configuration: scalars only, so that any wire can carry it."""

    method: str = "fedsdr"
    aggregation: str = "mean"  # it decides which factors of R are trained and sent
    start_seed: int = 0  # of the common start of the factors that are not sent
    correction: Literal["none", "fedprox", "scaffold"] = "none"
    mu: float = 0.01  # FedProx: weight of (mu / 2) ||R - R_global||^2
    local_epochs: int = 3  # passes over the data in each phase
    smooth_epochs: int = 0  # 0: as local_epochs; else the epochs of the phases that train S
    batch_size: int = 128  # examples an optimizer step
    optimizer: str = "adamw"
    lr: float = 3e-4
    schedule: str = "constant"  # of lr over the rounds
    warmup_rounds: int = 0
    rounds: int = 0  # in total, which the schedule needs
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0  # 0: no clipping
    pack_tokens: int = 1024  # tokens in one forward pass; 0: what fits on the client's machine
    s_reset: bool = False  # re-initialize S every round
    s_dropout: float = 0.0  # share of the batches that train R without S in the forward
    mixture: float = 1.0  # share of rewrites where a phase reads "mixture"
    lora_dropout: float = 0.05
    anchor_beta: float = 7.0  # anchored loss: logit that is added to the gold token
    mask_perplexity: float = (
        2.5  # masked rows: the base's largest perplexity of a token that counts
    )
    distill_weight: float = 1.0  # distilled loss: weight of KL(teacher || R)
    update_dtype: UpdateDtype = "fp32"  # of the update that is sent
    clip_norm: float = 0.0  # of an update, over all its tensors; 0: no clipping
    local_noise: float = 0.0  # standard deviation of the noise that the client adds; 0: none
    afterwards: bool = False  # run the method's phases after the last round; nothing is sent


@dataclass(frozen=True)
class ClientTask:
    """The work of one client in one round.

    `accepted_round` is the last round in which the server accepted an update of this client, or 0.
    The client starts from its S of that round, so that a lost result is not learnt twice.
    `run_id` distinguishes two runs of one name at sites that keep folders of their own.
    """

    round: int
    client_id: str
    seed: int
    shared: "Tensors"
    control: "Tensors"  # SCAFFOLD's c; empty otherwise
    settings: LocalSettings
    accepted_round: int = 0
    run_id: str = ""


@dataclass(frozen=True)
class ClientUpdate:
    """The result of one client: dR = R_after - R_before over the names of `ClientTask.shared`.

    On its way to the server it is compressed (algorithms/compression.py); the round sees fp32.
    """

    client_id: str
    round: int
    num_examples: int
    delta: "Tensors"
    control_delta: "Tensors"  # SCAFFOLD's c_k+ - c_k; empty otherwise
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ClientFault:
    """A client that failed, and why, in one line."""

    client_id: str
    round: int
    reason: str


@dataclass(frozen=True)
class ServerState:
    """The server's state between rounds. `round` counts the finished ones."""

    round: int
    shared: "Tensors"
    optimizer_state: Mapping[str, "Tensors"]  # the server optimizer's m and v
    control: "Tensors"  # SCAFFOLD's c
    accepted: Mapping[str, int]  # client id -> the last round whose update was accepted
    draws: tuple[tuple[int, int], ...] = ()  # private runs, per round: (clients, sampled)


@dataclass(frozen=True)
class RoundRecord:
    """One line of rounds.jsonl.

    `left_out` names accepted clients whose update the aggregation did not use, with the reason;
    `aggregation` holds what else it reports.
    """

    round: int
    clients: tuple[Mapping[str, object], ...]
    refused: tuple[Mapping[str, object], ...]
    bytes_down: int
    bytes_up: int
    step_norm: float
    seconds: float
    update_cosine: float | None = None  # mean over pairs of updates; None with privacy
    epsilon: float | None = None  # client-level differential privacy spent so far
    left_out: tuple[Mapping[str, object], ...] = ()
    aggregation: Mapping[str, float] = field(default_factory=dict)
    evaluation: Mapping[str, object] | None = None  # of the state after the round, if measured


@dataclass(frozen=True)
class Decoding:
    """How tokens are sampled. Temperature 0 is greedy; top_k 0 and top_p 1 cut nothing."""

    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 0
    max_new_tokens: int = 256


@dataclass(frozen=True)
class GenerationRequest:
    """A conversation to answer. In fp32 the same seed gives the same answer in any batch; in bf16
    and fp16 the rounding of a product can depend on the batch size."""

    id: str
    turns: tuple[Turn, ...]
    seed: int = 0


@dataclass(frozen=True)
class Generation:
    """The answer to the request of the same id. `finished`: it ended with a stop token, not at the
    limit of new tokens."""

    id: str
    text: str
    finished: bool
    prompt_tokens: int
    new_tokens: int


# Answers come in any order, exactly one for each request.
Generate = Callable[[Sequence[GenerationRequest], Decoding], Iterator[Generation]]


@dataclass(frozen=True)
class TokenRow:
    """One example as tokens. `supervised[i]`: the loss counts the prediction of `tokens[i]`.

    `cut` counts the tokens that `max_length` removed at the end.
    """

    id: str
    tokens: tuple[int, ...]
    supervised: tuple[bool, ...]
    cut: int = 0
