"""What the client's side of any engine needs: model, template, private folder, and the work.

A site may hold one client (a hospital) or all of them (a simulation): there is one base model
either way, and what belongs to a client is read when its turn comes.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from fedsdr.config import Config
from fedsdr.data.chat_templates import Renderer, render_for
from fedsdr.distill.records import read_distilled
from fedsdr.errors import UserError, choose
from fedsdr.evaluation.held_out import ClientScores, HeldOut, Losses, evaluate_on
from fedsdr.evaluation.instance_weighting import MixedModel
from fedsdr.evaluation.metrics import metric_for
from fedsdr.models.base_model import Base, dtype_of, load_base
from fedsdr.models.checkpointing import checkpoint_layers
from fedsdr.models.generation import transformers_generate
from fedsdr.models.memory import choose_pack
from fedsdr.models.packing import pack, row_losses, supervised_tokens
from fedsdr.models.two_branch import BranchedModel
from fedsdr.tensors import Tensors
from fedsdr.training.client_store import ClientStore
from fedsdr.training.client_update import client_update
from fedsdr.training.local_training import ClientRows
from fedsdr.training.methods import METHODS, Method
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


@dataclass(frozen=True)
class Site:
    """One loaded base with two branches, and the folder where clients keep what is private."""

    config: Config
    folder: Path
    base: Base
    model: BranchedModel
    renderer: Renderer
    # The scores of the bare base, which the runs of a comparison share, by what they depend on.
    base_scores: dict[object, dict[str, ClientScores]] = dataclasses.field(default_factory=dict)

    @property
    def method(self) -> Method:
        return choose(self.config.method.name, METHODS, "method.name")

    def store(self, client_id: str) -> ClientStore:
        """Return where a client keeps its S."""
        folder = self.folder / "clients" / client_id
        return ClientStore(folder, self.config.lora.alpha, self.base.name)

    def private_of(self, client_id: str, state: ServerState) -> Tensors:
        """Return a client's S after its last counted round; empty where the method has none or
        no update of the client was counted."""
        if not self.method.private:
            return {}
        return self.store(client_id).load(state.accepted.get(client_id, 0)).private

    def distilled(self, client_id: str) -> Path:
        """Return where a client keeps its rewrites."""
        return self.folder / "distilled" / f"{client_id}.jsonl"

    def encode(self, examples: Sequence[Example]) -> tuple[TokenRow, ...]:
        """Return the examples as token rows of at most `data.max_length` tokens."""
        length = self.config.data.max_length
        return tuple(self.renderer.encode(example, length) for example in examples)

    def losses(self, examples: Sequence[Example]) -> list[tuple[float, int]]:
        """Return (summed loss in nats, supervised tokens) of each, with the forward as it is."""
        rows = self.encode(examples)
        sums = [0.0] * len(rows)
        with torch.inference_mode():
            for group in pack(rows, self.config.train.pack_tokens):
                losses = row_losses(self.model.model, [rows[i] for i in group])
                for i, loss in zip(group, losses.tolist(), strict=True):
                    sums[i] = loss
        return [(s, supervised_tokens(row)) for s, row in zip(sums, rows, strict=True)]

    def generate(self, batch_size: int) -> Generate:
        """Return a `Generate` over the model with the forward as it is when it is called."""
        return transformers_generate(
            self.model.model,
            self.base.tokenizer,
            self.renderer.prompt,
            self.renderer.stop_token_ids,
            batch_size,
        )


def open_site(config: Config, folder: Path) -> Site:
    """Load the base model and put the branches on it. UserError for all that the user can mend.

    The site's configuration has what "auto" and an automatic pack size came to.
    """
    if not config.train.pack_tokens:
        config = with_pack(config, choose_pack(config)[0])
    base, lora = load_base(config.model), config.lora
    model = BranchedModel(
        base.model, rank=lora.rank, alpha=lora.alpha, target_modules=lora.target_modules
    )
    if config.train.checkpointing:
        checkpoint_layers(base.model)
    return site_of(config, folder, base, model)


def site_of(config: Config, folder: Path, base: Base, model: BranchedModel) -> Site:
    """Return a site whose base is loaded, with what "auto" came to in its configuration."""
    renderer = render_for(base.tokenizer, config.model.template)
    dtype = dtype_of(config.model)
    resolved = dataclasses.replace(config.model, dtype=dtype, template=renderer.name)
    return Site(dataclasses.replace(config, model=resolved), folder, base, model, renderer)


def with_pack(config: Config, pack_tokens: int) -> Config:
    """Return the configuration with this pack size."""
    train = dataclasses.replace(config.train, pack_tokens=pack_tokens)
    return dataclasses.replace(config, train=train)


def check_supervised(client_id: str, kind: str, rows: Sequence[TokenRow]) -> None:
    """UserError when there are rows and no token of them counts in the loss."""
    if rows and not any(supervised_tokens(row) for row in rows):
        cut = sum(row.cut > 0 for row in rows)
        raise UserError(
            f"client '{client_id}': no token of its {len(rows)} {kind} rows is supervised "
            f"({cut} are cut); raise data.max_length or look at: fedsdr data CONFIG"
        )


def train_at(
    site: Site,
    client: ClientData,
    task: ClientTask,
    after_step: Callable[[int], None] | None = None,
) -> ClientUpdate:
    """Do one client's work of one round; its rewrites are read from its own folder. `after_step`
    is told the rows of each optimizer step."""
    method = choose(task.settings.method, METHODS, "method.name")
    rewritten: tuple[Example, ...] = ()
    if method.rewrites:
        rewritten = read_distilled(site.distilled(client.client_id), client.raw)
    rows = ClientRows(site.encode(client.raw), site.encode(rewritten))
    check_supervised(client.client_id, "training", rows.raw)
    if not task.settings.pack_tokens:  # automatic: what fits is this machine's affair
        pack_tokens = site.config.train.pack_tokens
        settings = dataclasses.replace(task.settings, pack_tokens=pack_tokens)
        task = dataclasses.replace(task, settings=settings)
    return client_update(task, rows, site.model, site.store(client.client_id), after_step)


def evaluate_model(
    site: Site,
    clients: Sequence[ClientData],
    branches: tuple[Branch, ...],
    *,
    mixed_by: ClientData | None = None,
) -> dict[str, ClientScores]:
    """Measure the model of these branches, as they are set now, on the test rows of each client.

    With `mixed_by`, R and S are weighed for each row, by the training rows of that client.
    """
    tests = {
        c.client_id: HeldOut(c.test, metric_for((*c.raw, *c.test)))  # by its kind of data
        for c in clients
    }
    with forward_of(site, branches, mixed_by) as (losses, generate):
        scores = evaluate_on(
            tests,
            losses=losses,
            generate=generate,
            max_new_tokens=site.config.evaluation.max_new_tokens,
            seed=site.config.seed,
        )
    for name, measured in scores.items():
        if not math.isfinite(measured.loss):
            model = "+".join(("base", *branches))
            raise UserError(
                f"client '{name}': the loss of {model} on its test rows is not finite; "
                "start anew with a lower train.lr"
            )
    return scores


@contextmanager
def forward_of(
    site: Site, branches: tuple[Branch, ...], mixed_by: ClientData | None = None
) -> Iterator[tuple[Losses, Generate]]:
    """Give the losses and the generation of the model with these branches in its forward."""
    generate = site.generate(site.config.evaluation.batch_size)
    if mixed_by:
        local = MixedModel(
            model=site.model,
            prompt=site.renderer.prompt,
            examples=mixed_by.raw,
            seed=site.config.seed,
        )
        yield local.losses(site.losses), local.generate(generate)
        return
    with site.model.using(*branches):
        yield site.losses, generate
