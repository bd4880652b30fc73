"""The two phenomena of the paper on the clients of a finished run: alignment and the paradox."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsdr.data.chat_templates import responses_of
from fedsdr.distill.filters import refuses
from fedsdr.distill.records import RewriteRecord, read_distilled, read_records
from fedsdr.errors import UserError, choose
from fedsdr.models.nli import RELATIONS, Infer, load_nli
from fedsdr.models.packing import device_of
from fedsdr.progress import Progress
from fedsdr.research.diagnose import alignment, rewrite_signs
from fedsdr.research.diagnose.answer_map import landscape
from fedsdr.research.diagnose.measurements import (
    end_at,
    extra_round,
    gradient_alignment,
    loss_transfer,
    sample_rows,
    serving_losses,
    start_at,
)
from fedsdr.research.diagnose.summary import OVERALL, json_numbers
from fedsdr.runs.client_runtime import Site
from fedsdr.runs.rewriting import has_rewrites
from fedsdr.seeds import seed_for
from fedsdr.types import ClientData, Example, R, S, ServerState

_NEEDING_REWRITES = ("text", "map", "rewrites")
_MAPPED = 1000  # answers of all clients on the map at most: t-SNE slows down beyond, and it is full


@dataclass(frozen=True)
class Diagnosis:
    """What a part needs: the run, its clients with their rewrites, and how much to measure."""

    site: Site
    state: ServerState
    clients: Sequence[ClientData]
    rewritten: Mapping[str, tuple[Example, ...]]  # client -> as it is trained on; {} without
    rows: int  # at most so many a client where the model is asked
    steps: int
    infer: Infer | None
    progress: Progress

    @property
    def seed(self) -> int:
        return seed_for(self.site.config.seed, "diagnose")

    def chosen(self, client: ClientData, examples: Sequence[Example]) -> list[Example]:
        """The same rows of raw and rewritten examples."""
        at = sample_rows(self.seed, client.client_id, len(examples), self.rows)
        return [examples[i] for i in at]


def diagnose(
    site: Site,
    state: ServerState,
    clients: Sequence[ClientData],
    progress: Progress,
    *,
    only: Sequence[str] = (),
    rows: int = 32,
    steps: int = 8,
    nli: str = "",
) -> dict[str, Any]:
    """Measure the parts in `only` (all where it is empty) and return what diagnose.json holds.

    UserError, before anything slow, for an unknown part, and when a part that reads rewrites is
    asked for and there are none.
    """
    parts = {name: choose(name, PARTS, "--only") for name in only or PARTS}
    rewrites = has_rewrites(site, clients)
    if not rewrites and (needing := [name for name in parts if name in _NEEDING_REWRITES]):
        raise UserError(
            f"{site.folder}: has no rewrites (for {', '.join(needing)}): run a method that "
            f"makes them, or fedsdr distill {site.folder / 'config.toml'} --out {site.folder}; or "
            "ask for the rest: --only optimization --only serving --only aggregation"
        )
    infer = load_nli(nli, device_of(site.base.model)) if nli and "rewrites" in parts else None
    facts = Diagnosis(
        site=site,
        state=state,
        clients=clients,
        rewritten={c.client_id: read_distilled(site.distilled(c.client_id), c.raw) for c in clients}
        if rewrites
        else {},
        rows=rows,
        steps=steps,
        infer=infer,
        progress=progress,
    )
    found: dict[str, Any] = {
        "method": site.method.name,
        "algorithm": site.config.algorithm.name,
        "rounds": state.round,
        "seed": site.config.seed,
        "clients": {c.client_id: {"train": len(c.raw), "test": len(c.test)} for c in clients},
        "rows a client at most": rows,
        "steps": steps,
        "nli": nli,
    }
    for name, part in parts.items():
        progress.log(f"measuring {name}")
        found[name] = json_numbers(part(facts))
    return found


def _text(facts: Diagnosis) -> dict[str, Any]:
    """How alike the clients' answers are, raw and as they are trained on."""
    raw = {c.client_id: c.raw for c in facts.clients}
    if len(raw) < 2:
        return {"not measured": "there is one client alone"}
    raw_texts, rewritten = (_texts_of(kind) for kind in (raw, facts.rewritten))
    return alignment_of(raw_texts, rewritten, facts.site.base.tokenizer, facts.seed)


def alignment_of(
    raw: Mapping[str, Sequence[str]],
    rewritten: Mapping[str, Sequence[str]],
    tokenizer: Any,
    seed: int,
) -> dict[str, Any]:
    """Return how alike the texts of the clients are, raw and rewritten, in the tokenizer's tokens
    and in words."""
    texts = raw, rewritten
    tokens = [
        {c: tokenizer(rows, add_special_tokens=False)["input_ids"] for c, rows in kind.items()}
        for kind in texts
    ]
    counts, counts_rewritten = alignment.token_rows(tokens[0], tokens[1])
    tfidf, tfidf_rewritten = alignment.tfidf_rows(texts[0], texts[1])
    js = alignment.jensen_shannon
    return {
        "Jensen-Shannon divergence": alignment.compare(counts, counts_rewritten, js, seed),
        "Jensen-Shannon divergence at equal tokens": alignment.divergence_at_equal_tokens(
            counts, counts_rewritten, seed
        ),
        "TF-IDF cosine": alignment.compare(tfidf, tfidf_rewritten, alignment.cosine, seed),
    }


def _texts_of(rows: Mapping[str, Sequence[Example]]) -> dict[str, list[str]]:
    return {client: ["\n".join(responses_of(e)) for e in of] for client, of in rows.items()}


def _map(facts: Diagnosis) -> dict[str, Any]:
    """Where the answers lie among each other: the same rows of each client, raw and rewritten."""
    if len(facts.clients) < 2:
        return {"not measured": "there is one client alone"}
    share = max(1, _MAPPED // len(facts.clients))
    raw, rewritten = {}, {}
    for client in facts.clients:
        name = client.client_id
        at = sample_rows(facts.seed, name, len(client.raw), share)
        raw[name] = [client.raw[i] for i in at]
        rewritten[name] = [facts.rewritten[name][i] for i in at]
    return landscape(_texts_of(raw), _texts_of(rewritten), facts.seed)


def _rewrites(facts: Diagnosis) -> dict[str, Any]:
    """What became of each answer, over all rewrites that were made, over those that are
    trained on, and over the latter of each client."""
    records: dict[str, list[RewriteRecord]] = {}
    for client in facts.clients:
        own = {example.id for example in client.raw}  # the file may hold rewrites of other rows
        path = facts.site.distilled(client.client_id)
        records[client.client_id] = [r for r in read_records(path) if r.id in own]
    used = {c: [r for r in of if r.used == "rewrite"] for c, of in records.items()}
    everything = ([r for of in kind.values() for r in of] for kind in (records, used))
    overall = dict(zip(OVERALL, everything, strict=True))
    found = {name: _signs(facts.seed, group) for name, group in (overall | used).items()}
    for name, group in overall.items():
        found[name] |= _inference(facts, [(r.raw, r.rewrite) for r in group])
    return found


def _signs(seed: int, records: Sequence[RewriteRecord]) -> dict[str, Any]:
    pairs = [(r.raw, r.rewrite) for r in records]
    return {
        **rewrite_signs.kept_and_lost(pairs, seed),
        "refused": rewrite_signs.mean_of([float(bool(refuses(*pair))) for pair in pairs], seed),
        "truncated": rewrite_signs.mean_of([float(not r.finished) for r in records], seed),
    }


def _inference(facts: Diagnosis, pairs: Sequence[rewrite_signs.Pair]) -> dict[str, Any]:
    """Shares of entailment, neutral and contradiction in both directions."""
    at = sample_rows(facts.seed, "nli", len(pairs), facts.rows * len(facts.clients))
    some = [pairs[i] for i in at]
    ways = {
        "raw -> rewrite": some,
        "rewrite -> raw": [(rewrite, raw) for raw, rewrite in some],
    }
    if facts.infer is None:
        why = "no model was named: --nli MODEL"
        return {way: {"not measured": why, "rows": 0} for way in ways}
    found: dict[str, Any] = {}
    for way, premises in ways.items():
        relations = facts.infer(premises)
        for name in RELATIONS:
            values = [float(relation == name) for relation in relations]
            found[f"{name}, {way}"] = rewrite_signs.mean_of(values, facts.seed)
    return found


def _optimization(facts: Diagnosis) -> dict[str, Any]:
    """Whether what one client learns helps or harms the others."""
    site, state, clients = facts.site, facts.state, facts.clients
    if len(clients) < 2:
        return {"not measured": "there is one client alone"}
    rows = {"raw": {c.client_id: facts.chosen(c, c.raw) for c in clients}}
    if facts.rewritten:
        rows["rewritten"] = {
            c.client_id: facts.chosen(c, facts.rewritten[c.client_id]) for c in clients
        }
    start, end = start_at(site), end_at(site, state)
    cosines: dict[str, Any] = {}
    for kind, of_kind in rows.items():
        cosines[f"{kind}, at the start, R alone"] = gradient_alignment(site, of_kind, (R,), start)
        if R in site.method.sent:
            model = site.method.global_model
            name = f"{kind}, after training, {'+'.join(model)}"
            cosines[name] = gradient_alignment(site, of_kind, model, end)
            if S in site.method.private:
                name = f"{kind}, after training, R beside own S"
                cosines[name] = gradient_alignment(site, of_kind, (R, S), end)
    ways = [("raw", "raw"), ("rewritten", "rewritten"), ("rewritten", "raw")]
    transfer: dict[str, Any] = {}
    for learnt, asked in ways:
        if learnt in rows:
            name = f"trained on {learnt}, loss on {asked}"
            with facts.progress.bar(f"loss transfer, {name}", len(clients)) as advance:
                transfer[name] = loss_transfer(
                    site, rows[learnt], rows[asked], start, facts.steps, advance
                )
    return {"gradient cosine": cosines, "loss transfer": transfer}


def _held_out(facts: Diagnosis) -> tuple[str, dict[str, list[Example]]]:
    """Test rows, or training rows where a client has no test rows."""
    which = "test" if all(c.test for c in facts.clients) else "training"
    return which, {
        c.client_id: facts.chosen(c, c.test if which == "test" else c.raw) for c in facts.clients
    }


def _serving(facts: Diagnosis) -> dict[str, Any]:
    """R is trained beside S and served without it."""
    which, rows = _held_out(facts)
    return {
        "of": which,
        "rows": {client: len(examples) for client, examples in rows.items()},
        "losses": serving_losses(facts.site, facts.clients, facts.state, rows),
    }


def _aggregation(facts: Diagnosis) -> dict[str, Any]:
    """What averaging the factors does to one more round of updates."""
    if not facts.site.method.sent:
        return {"not measured": f"{facts.site.method.name} sends nothing"}
    which, rows = _held_out(facts)
    with facts.progress.bar("one more round", len(facts.clients)) as advance:
        found = extra_round(facts.site, facts.clients, facts.state, rows, advance)
    return {"of": which, "loss rows": {c: len(x) for c, x in rows.items()}, **found}


PARTS: dict[str, Callable[[Diagnosis], dict[str, Any]]] = {
    "text": _text,
    "map": _map,
    "rewrites": _rewrites,
    "optimization": _optimization,
    "serving": _serving,
    "aggregation": _aggregation,
}
