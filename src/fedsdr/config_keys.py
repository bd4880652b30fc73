"""Every configuration key once: type, bounds, default and meaning, in frozen pydantic dataclasses.

Constructing a section validates it, and so does `dataclasses.replace`. A name that a registry
lists (`method.name`, `data.partition`, ...) is plain text here; runs/config_schema.py has the
registry of each such key.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

T = TypeVar("T")
Dtype = Literal["auto", "fp32", "bf16", "fp16"]
UpdateDtype = Literal["fp32", "bf16", "int8"]
Column = Literal[
    "prompt", "response", "messages", "input", "system", "history", "tools", "category", "id"
]
EngineName = Literal["in-process", "flower"]

_LARGEST = 10**12
Count = Annotated[int, Field(ge=1, le=_LARGEST)]
CountOrZero = Annotated[int, Field(ge=0, le=_LARGEST)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, le=0.99)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Seconds = Annotated[float, Field(ge=1, le=1e9)]
Size = Annotated[float, Field(gt=0, le=_LARGEST)]
Text = Annotated[str, Field(min_length=1)]

# No coercion: "3" is not a number and 1 is not true, but an integer may stand for a float.
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


def key(default: T, meaning: str, **bounds: Any) -> T:
    """Return a pydantic field, typed as its default so that mypy checks the declaration."""
    return Field(default, description=meaning, **bounds)


@dataclass(frozen=True, config=_STRICT)
class ModelConfig:
    name: Text = key("embedded:smollm2-135m-instruct", "or a hub id, a model folder, a .gguf file")
    revision: str = key("", "branch, tag or commit of a hub model")
    dtype: Dtype = key("auto", "dtype of the base; auto: the faster one on this device")
    quantize: Literal["none", "8bit", "4bit"] = key("none", "quantization of the base; needs CUDA")
    device: str = key("auto", "auto, cpu, cuda or cuda:1")
    template: str = key("auto", "prompt layout; auto: the tokenizer's chat template, else alpaca")
    trust_remote_code: bool = key(False, "run the Python code that a hub model brings")


@dataclass(frozen=True, config=_STRICT)
class DataConfig:
    clients: str | list[str] = key("", "a folder with one file per client, or a list of files")
    include: list[str] = key([], "clients to use; empty: all")
    leave_out: list[str] = key([], "clients that take no part and are measured all the same")
    source: str | list[str] = key("", "files or hub:ORG/NAME to split between clients instead")
    columns: dict[Column, Text] = key(
        {}, '[data.columns] prompt = "query", response = "reply": names of columns, docs/data.md'
    )
    partition: str = key("dirichlet", "how source is split")
    alpha: float = key(0.5, "dirichlet, quantity: the smaller, the more skewed", ge=1e-6, le=1e9)
    num_clients: Count = key(8, "number of clients that source is split between")
    per_client: Count = key(2, "pathological: categories of each client; shard: shards of each")
    sizes: list[Size] = key([], "size: a number per client, rows in this proportion")
    test_fraction: ShareBelowOne = key(0.1, "share of each client's rows held out for testing")
    validation_fraction: ShareBelowOne = key(0.0, "share of the other rows held out to choose by")
    max_examples: CountOrZero = key(0, "training rows per client; 0: all")
    max_test_examples: CountOrZero = key(0, "test, and validation, rows per client; 0: all")
    max_length: int = key(512, "tokens per row", ge=8, le=_LARGEST)
    seed: int = key(0, "seed of partition and split; not `seed`, so all seeds share test rows")


@dataclass(frozen=True, config=_STRICT)
class MethodConfig:
    name: str = key("fedsdr", "what clients train and send, docs/method.md")
    mixture: Share = key(1.0, "fedsd: share of rewritten rows; the rest stay raw")
    s_reset: bool = key(False, "re-initialize S every round instead of keeping it")
    s_dropout: Share = key(0.0, "share of batches that train R without S, where both are used")


@dataclass(frozen=True, config=_STRICT)
class AlgorithmConfig:
    name: str = key("fedavg", "server optimizer and client correction")
    aggregation: str = key("mean", "how the updates of a round are combined")
    malicious_share: float = key(
        0.25, "trimmed-mean, multi-krum: share of the updates that may be hostile", ge=0, lt=0.5
    )
    lr: float | None = key(None, "server learning rate; unset: the algorithm's default", gt=0)
    beta: Decay | None = key(None, "fedavgm: momentum")
    b1: Decay | None = key(None, "fedadam, fedyogi: decay of the first moment")
    b2: Decay | None = key(None, "fedadam, fedyogi: decay of the second moment")
    tau: float | None = key(None, "fedadagrad, fedadam, fedyogi: added to the denominator", gt=0)
    mu: float = key(0.01, "fedprox: weight of the proximal term", ge=0, le=1e9)


@dataclass(frozen=True, config=_STRICT)
class FederationConfig:
    rounds: Count = key(20, "rounds in total; raise it to continue a finished run")
    clients_per_round: CountOrZero = key(0, "clients sampled each round; 0: all")
    min_updates: Count = key(1, "a round with fewer accepted updates ends the run")
    update_dtype: UpdateDtype = key("fp32", "dtype of updates on the wire")
    max_norm_ratio: float = key(
        10.0, "reject updates this many times above the round's median norm; 0: none", ge=0, le=1e9
    )
    max_weight_ratio: float = key(
        0.0, "a client weighs at most this many times the median client; 0: no limit", ge=0, le=1e9
    )
    max_update_norm: float = key(0.0, "reject updates with a larger norm; 0: none", ge=0, le=1e30)


@dataclass(frozen=True, config=_STRICT)
class PrivacyConfig:
    mode: Literal["none", "central", "local"] = key("none", "who adds noise, docs/privacy.md")
    clip_norm: float = key(1.0, "norm that a whole update is clipped to", ge=1e-9, le=1e9)
    noise_multiplier: float = key(1.0, "standard deviation / clip_norm", ge=1e-3, le=1e9)
    delta: float = key(1e-5, "delta at which epsilon is reported", gt=0, le=0.1)


@dataclass(frozen=True, config=_STRICT)
class TrainConfig:
    local_epochs: Count = key(3, "epochs per phase of a round")
    smooth_epochs: CountOrZero = key(0, "epochs of the phases that train S; 0: local_epochs")
    batch_size: Count = key(128, "examples per optimizer step")
    optimizer: str = key("adamw", "the client's optimizer, PyTorch's with its defaults")
    lr: float = key(3e-4, "learning rate of the client's optimizer", gt=0, le=1e3)
    schedule: str = key("constant", "learning rate over the rounds, after the warm-up")
    warmup_rounds: CountOrZero = key(0, "rounds in which the learning rate rises to lr")
    weight_decay: float = key(0.0, "weight decay of the client's optimizer", ge=0, le=1e3)
    max_grad_norm: float = key(1.0, "gradient clipping; 0: none", ge=0, le=1e9)
    pack_tokens: CountOrZero = key(0, "tokens per forward pass; 0: as many as memory allows")
    checkpointing: bool = key(False, "gradient checkpointing: less memory, slower")
    anchor_beta: float = key(
        7.0, "anchored: 0 keeps the base, large is plain training", ge=0, le=80
    )
    mask_perplexity: float = key(2.5, "masked: tokens above it do not count", ge=1, le=1e9)
    distill_weight: float = key(1.0, "fedsdr-down: weight of the distillation", ge=0, le=1e3)


@dataclass(frozen=True, config=_STRICT)
class LoraConfig:
    rank: int = key(8, "rank of each branch", ge=1, le=10**5)
    # An integer stays one, because PEFT declares lora_alpha as int.
    alpha: PositiveInt | PositiveFloat = key(16, "each branch is scaled by alpha / rank")
    rslora: bool = key(False, "scale by alpha / sqrt(rank) instead")
    rank_pattern: dict[Text, Count] = key({}, "ranks of layers by the end of their names, a regex")
    alpha_pattern: dict[Text, PositiveInt | PositiveFloat] = key({}, "alphas by layer, likewise")
    init: str = key("kaiming", "how A starts; B starts at zero")
    dropout: ShareBelowOne = key(0.05, "dropout on the input of the trained branch")
    target_modules: Text | Annotated[list[Text], Field(min_length=1)] = key(
        ["q_proj", "v_proj"], 'names of linear layers, "all-linear", or one regex of full names'
    )


@dataclass(frozen=True, config=_STRICT)
class TeacherConfig:
    engine: str = key("auto", "what generates rewrites; auto: the fastest one installed")
    model: str = key("", "another model as teacher; openai: the endpoint's name for it")
    temperature: float = key(0.7, "sampling temperature; 0: greedy", ge=0, le=100)
    top_p: float = key(0.9, "nucleus sampling; 1: off", gt=0, le=1)
    top_k: CountOrZero = key(0, "top-k sampling; 0: off")
    max_new_tokens: Count = key(256, "tokens per rewrite")
    filter: str = key("sdft", "which rewrites are replaced by the raw answer")
    refresh: CountOrZero = key(0, "rounds between rewrites anew by the global model; 0: never")
    attempts: Count = key(3, "repair: how often a refused rewrite is asked for again")
    prompts: str = key("", "file with your own rewriting prompts")
    seed: int = key(0, "seed of sampling; not `seed`, so all seeds share one set of rewrites")
    batch_size: Count = key(32, "rewrites generated at once")
    url: str = key("", "openai: address, http://localhost:8000/v1")
    api_key_env: str = key("OPENAI_API_KEY", "openai: environment variable that holds the key")
    allow_remote: bool = key(False, "openai: allow raw data to leave this machine")
    cache: str = key("", "folder of rewrites; empty: $FEDSDR_CACHE or ~/.cache/fedsdr")


@dataclass(frozen=True, config=_STRICT)
class EvaluationConfig:
    max_new_tokens: Count = key(128, "tokens per scored answer")
    batch_size: Count = key(32, "answers generated at once")
    every: CountOrZero = key(0, "measure every so many rounds, on validation rows if any; 0: never")
    by_round: Literal["loss", "all"] = key("loss", "what is measured between rounds")
    keep: Literal["last", "best"] = key("last", "round that is served; best: on validation rows")
    transfer: bool = key(False, "measure each client's own model on the rows of all others")
    retention: bool = key(True, "measure the drift from the base on neutral prompts")


@dataclass(frozen=True, config=_STRICT)
class EngineConfig:
    name: EngineName = key("in-process", "what runs the clients")
    threads: int = key(
        0, "CPU threads; 0: the fewest that compute about as fast as all", ge=0, le=4096
    )
    clients_at_once: int = key(
        1, "in-process: clients per forward pass; 0: as many as fill a pack", ge=0, le=10**4
    )
    parallel_clients: int = key(1, "flower, simulated: clients at once", ge=1, le=10**4)
    sites: CountOrZero = key(0, "flower: sites to wait for; 0: federation.min_updates")
    join_seconds: Seconds = key(600.0, "flower: wait for the sites, before round 1")
    rewrite_seconds: Seconds = key(43200.0, "flower: wait for all rewrites, before round 1")
    round_seconds: Seconds = key(3600.0, "flower: wait for the updates of a round")


@dataclass(frozen=True, config=_STRICT)
class LogConfig:
    to: list[str] = key([], "trackers of the rounds: tensorboard, trackio, wandb, mlflow")


@dataclass(frozen=True, config=_STRICT)
class ClientConfig:
    """The [clients.NAME] section of one client."""

    rank: int = key(0, "rank of R at this client; 0: lora.rank", ge=0, le=10**5)


@dataclass(frozen=True, config=_STRICT)
class Config:
    seed: int = key(0, "seed of initialization, client sampling and local training")
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    method: MethodConfig = Field(default_factory=MethodConfig)
    algorithm: AlgorithmConfig = Field(default_factory=AlgorithmConfig)
    federation: FederationConfig = Field(default_factory=FederationConfig)
    privacy: PrivacyConfig = Field(default_factory=PrivacyConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    lora: LoraConfig = Field(default_factory=LoraConfig)
    teacher: TeacherConfig = Field(default_factory=TeacherConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    engine: EngineConfig = Field(default_factory=EngineConfig)
    log: LogConfig = Field(default_factory=LogConfig)
    clients: dict[str, ClientConfig] = key(
        {}, "[clients.NAME] rank = 4: a smaller rank of R at this client; needs product"
    )


@dataclass(frozen=True, config=_STRICT)
class CompareConfig:
    """The [compare] section: what `fedsdr compare` varies. Other commands ignore it."""

    methods: list[str] | None = key(None, "unset: method.name alone")
    algorithms: list[str] | None = key(None, "unset: algorithm.name alone")
    seeds: list[int] | None = key(None, "unset: `seed` alone")
    draws: int = key(1, "draws of the data: data.seed, data.seed + 1, ...", ge=1, le=1000)
    sweep: dict[str, Any] = key({}, "lists of values for any key: data.alpha = [0.1, 0.5]")
    variants: list[dict[str, Any]] = key([], '{name = "S reset", method.s_reset = true}')
    tune: dict[str, Any] = key(
        {}, "lists of values to pick each variant's best of, on one more draw"
    )
    tune_model: Literal["global", "client"] = key("global", "whose test loss picks the values")
    baseline: str = key("plain", "method or variant that differences are taken from")
