"""The client's side of any engine: the model, the template, the private folders, and the work.

A runtime may serve one client (a hospital) or all of them (a simulation). There is one base model
either way; what belongs to a client is loaded for its task.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from fedsdr.algorithms.aggregation import AGGREGATIONS
from fedsdr.algorithms.product_aggregation import leading_part
from fedsdr.config import Config
from fedsdr.data.chat_templates import Renderer, render_for
from fedsdr.distill.records import read_distilled
from fedsdr.errors import UserError, choose
from fedsdr.evaluation.held_out import ClientScores, Infer, Losses
from fedsdr.evaluation.instance_weighting import MixedModel
from fedsdr.models.base_model import Base, cache_folder, dtype_of, load_base, threads_of
from fedsdr.models.checkpointing import checkpoint_layers
from fedsdr.models.cpu_choice import thread_limit, use_threads
from fedsdr.models.generation import OnText, transformers_generate
from fedsdr.models.memory import choose_pack
from fedsdr.models.model_limits import ModelLimits, check_tokens, limits_of
from fedsdr.models.packing import pack, row_losses, supervised_tokens
from fedsdr.models.two_branch import BranchedModel, with_branches
from fedsdr.progress import Advance, counted, no_advance
from fedsdr.runs.client_scores import client_scores
from fedsdr.runs.run_folder import BEST
from fedsdr.tensors import Tensors
from fedsdr.training.client_store import ClientStore
from fedsdr.training.client_update import client_training
from fedsdr.training.local_training import ClientRows
from fedsdr.training.methods import METHODS, Method
from fedsdr.training.optimizer_step import Training, run_alone
from fedsdr.training.shared_factors import widened
from fedsdr.types import (
    Branch,
    ClientData,
    ClientTask,
    ClientUpdate,
    Example,
    Generate,
    ServerState,
    TokenRow,
)

# A token takes about 45 bytes as a Python int and a flag: about 60 MB are kept.
CACHED_TOKENS = 1_300_000


@dataclass(frozen=True)
class ClientRuntime:
    """One loaded base model with two branches, and the folder of the clients' private state."""

    config: Config
    folder: Path
    base: Base
    model: BranchedModel
    renderer: Renderer
    beside: list[BranchedModel] = dataclasses.field(default_factory=list)  # see `side_by_side`

    def side_by_side(self, count: int) -> list[BranchedModel]:
        """Return the branches of this many clients, the model's own first; the others are kept."""
        while len(self.beside) < count - 1:
            self.beside.append(self.model.beside())
        return [self.model, *self.beside[: count - 1]]

    @property
    def cache(self) -> Path:
        """The folder of what can be used again by content: rewrites, checks, scores of bases."""
        given = self.config.teacher.cache
        return Path(given) if given else cache_folder()

    @property
    def method(self) -> Method:
        return choose(self.config.method.name, METHODS, "method.name")

    def store(self, client_id: str, round: int = 0) -> ClientStore:
        """Return the store of a client's private state; for a `round` that only FOLDER/best still
        has, the store there."""
        lora, base = self.config.lora, self.base.name
        stores = [
            ClientStore(folder / "clients" / client_id, lora, base)
            for folder in (self.folder, self.folder / BEST)
        ]
        held = [store for store in stores if round and store.round_folder(round).is_dir()]
        return held[0] if held else stores[0]

    def private_of(self, client_id: str, state: ServerState) -> Tensors:
        """Return where a client's model differs from the global one after its last accepted round.

        That is its S, its own B of R (`share-a`), or the leading part of R (a smaller rank). Empty
        where it has none of them or no update was accepted.
        """
        received = {}
        if client_id in state.accepted and (rank := self.rank_of(client_id)):
            received = widened(leading_part(state.shared, rank), state.shared)
        branches = self.method.private
        if not (branches or AGGREGATIONS[self.config.algorithm.aggregation].kept):
            return received
        like = {n: p for branch in branches for n, p in self.model.parameters(branch).items()}
        round = state.accepted.get(client_id, 0)
        return received | self.store(client_id, round).load(round, like).own

    def rank_of(self, client_id: str) -> int:
        """Return a client's own rank of R, or 0."""
        own = self.config.clients.get(client_id)
        return own.rank if own and self.method.sent else 0

    def distilled(self, client_id: str, round: int = 1) -> Path:
        """Return the file of the rewrites that a client trains on in a round."""
        every = self.config.teacher.refresh
        made_after = (round - 1) // every * every if every else 0
        if not made_after:
            return self.folder / "distilled" / f"{client_id}.jsonl"
        return self.folder / "distilled" / f"round-{made_after:04d}" / client_id / "rewrites.jsonl"

    @property
    def notes(self) -> tuple[str, ...]:
        """How the model runs and which layers are adapted, one line each, for the log."""
        threads, most = self.config.engine.threads, thread_limit()
        fewer = [f"{threads} of {most} CPU threads (engine.threads)"] if threads < most else []
        return *self.base.notes, *fewer, self.model.description

    def encode(self, examples: Sequence[Example]) -> tuple[TokenRow, ...]:
        """Return the examples as token rows of at most `data.max_length` tokens."""
        return tuple(map(self._encode_row, examples))

    @functools.cached_property
    def limits(self) -> ModelLimits:
        """What the model can hold."""
        return limits_of(self.model.model, self.base.tokenizer)

    @functools.cached_property
    def _encode_row(self) -> Callable[[Example], TokenRow]:
        length = self.config.data.max_length
        keep = functools.lru_cache(max(1, CACHED_TOKENS // length))
        return keep(functools.partial(self.renderer.encode, max_length=length))

    def losses(self, examples: Sequence[Example]) -> list[tuple[float, int]]:
        """Return (summed loss in nats, supervised tokens) of each, with the current forward."""
        return self.losses_of(self.encode(examples))

    def losses_of(self, rows: Sequence[TokenRow]) -> list[tuple[float, int]]:
        """Return the same of token rows."""
        sums = [0.0] * len(rows)
        with torch.inference_mode():
            for group in pack(rows, self.config.train.pack_tokens):
                losses = row_losses(self.model.model, [rows[i] for i in group])
                for i, loss in zip(group, losses.tolist(), strict=True):
                    sums[i] = loss
        return [(s, supervised_tokens(row)) for s, row in zip(sums, rows, strict=True)]

    def generate(
        self,
        batch_size: int,
        branches_of: Mapping[str, BranchedModel] | None = None,
        on_text: OnText | None = None,
    ) -> Generate:
        """Return a `Generate` over the model, with the forward at the time of the call."""
        return transformers_generate(
            self.model.model,
            self.base.tokenizer,
            self.renderer.prompt,
            self.renderer.stop_token_ids,
            batch_size,
            branches_of=branches_of,
            on_text=on_text,
        )


def open_runtime(config: Config, folder: Path, clients: int = 0) -> ClientRuntime:
    """Load the base model and add the branches. UserError for what the user can fix.

    In the runtime's configuration, "auto" and an automatic pack size, for a run of this many
    `clients` (0: unknown), are resolved.
    """
    if not config.train.pack_tokens:
        config = with_pack(config, choose_pack(config, clients)[0])
    base = load_base(config.model)
    model = with_branches(base.model, config.lora)
    if config.train.checkpointing:
        checkpoint_layers(base.model, model.generators)
    return runtime_of(config, folder, base, model)


def runtime_of(config: Config, folder: Path, base: Base, model: BranchedModel) -> ClientRuntime:
    """Return the runtime of a loaded base, with "auto" resolved in its configuration and PyTorch
    set to `engine.threads` threads."""
    renderer = render_for(base.tokenizer, config.model.template)
    named = dataclasses.replace(config.model, dtype=dtype_of(config.model), template=renderer.name)
    threads = config.engine.threads or threads_of(named)
    use_threads(threads)
    engine = dataclasses.replace(config.engine, threads=threads)
    config = dataclasses.replace(config, model=named, engine=engine)
    return ClientRuntime(config, folder, base, model, renderer)


def with_pack(config: Config, pack_tokens: int) -> Config:
    """Return the configuration with this pack size."""
    train = dataclasses.replace(config.train, pack_tokens=pack_tokens)
    return dataclasses.replace(config, train=train)


def check_rows(limits: ModelLimits, client_id: str, kind: str, rows: Sequence[TokenRow]) -> None:
    """UserError for a token that the model does not have, or when there are rows but none of their
    tokens counts in the loss."""
    for row in rows:
        check_tokens(limits, row.tokens, f"client '{client_id}', row '{row.id}'")
    if rows and not any(supervised_tokens(row) for row in rows):
        cut = sum(row.cut > 0 for row in rows)
        raise UserError(
            f"client '{client_id}': no token of its {len(rows)} {kind} rows is supervised "
            f"({cut} rows are cut); raise data.max_length, see: fedsdr data CONFIG"
        )


def train_at(
    runtime: ClientRuntime,
    client: ClientData,
    task: ClientTask,
    after_step: Callable[[int, int], None] | None = None,
) -> ClientUpdate:
    """Do a client's work of one round; `after_step` gets the rows and tokens of each step."""
    training = training_at(runtime, client, task, runtime.model, after_step)
    return run_alone(training, runtime.model.model)


def training_at(
    runtime: ClientRuntime,
    client: ClientData,
    task: ClientTask,
    model: BranchedModel,
    after_step: Callable[[int, int], None] | None = None,
) -> Training[ClientUpdate]:
    """Return the training of a client's work of one round, over branches of its own."""
    method = choose(task.settings.method, METHODS, "method.name")
    rows = _rows_of(runtime, client, task.round, rewritten=method.rewrites)
    if not task.settings.pack_tokens:  # automatic: this machine knows what fits
        pack_tokens = runtime.config.train.pack_tokens
        settings = dataclasses.replace(task.settings, pack_tokens=pack_tokens)
        task = dataclasses.replace(task, settings=settings)
    store = runtime.store(client.client_id)
    return (yield from client_training(task, rows, model, store, after_step))


def _rows_of(
    runtime: ClientRuntime, client: ClientData, round: int, *, rewritten: bool
) -> ClientRows:
    """Return the training rows of a client as tokens; the rewrites are those of its own folder."""
    name, path = client.client_id, runtime.distilled(client.client_id, round)
    examples = read_distilled(path, client.raw) if rewritten else ()
    rows = ClientRows(runtime.encode(client.raw), runtime.encode(examples))
    check_rows(runtime.limits, name, "training", rows.raw)
    check_rows(runtime.limits, name, "rewritten", rows.rewritten)
    return rows


def evaluate_model(
    runtime: ClientRuntime,
    clients: Sequence[ClientData],
    branches: tuple[Branch, ...],
    *,
    mixed_by: ClientData | None = None,
    infer: Infer | None = None,
    advance: Advance = no_advance,
) -> dict[str, ClientScores]:
    """Measure the model of these branches, with their current values, on each client's test rows.

    With `mixed_by`, R and S are weighted per row, by the training rows of that client (FedDPA).
    `infer`: see `evaluate_on`. Each answer advances `advance`.
    """
    with forward_of(runtime, branches, mixed_by) as (losses, generate):
        generate = counted(generate, advance)
        return client_scores(runtime.config, clients, branches, losses, generate, infer)


def mixed_model(runtime: ClientRuntime, client: ClientData) -> MixedModel:
    """Return FedDPA's model of a client, whose training rows weigh the branches per prompt."""
    return MixedModel(runtime.model, runtime.renderer.prompt, client.raw, runtime.config.seed)


@contextmanager
def forward_of(
    runtime: ClientRuntime, branches: tuple[Branch, ...], mixed_by: ClientData | None = None
) -> Iterator[tuple[Losses, Generate]]:
    """Yield the losses and the generation of the model with these branches in its forward."""
    generate = runtime.generate(runtime.config.evaluation.batch_size)
    if mixed_by:
        local = mixed_model(runtime, mixed_by)
        yield local.losses(runtime.losses), local.generate(generate)
        return
    with runtime.model.using(*branches):
        yield runtime.losses, generate
