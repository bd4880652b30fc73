"""Let the seed model rewrite the answers of one client (FedSDR, Eq. 2)."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from fedsdr.data.answer_parsing import kind_of
from fedsdr.data.chat_templates import responses_of
from fedsdr.distill.cache import RewriteCache, cache_key
from fedsdr.distill.filters import ASKS_AGAIN, FILTERS, Filter, Rewrite, sdft
from fedsdr.distill.prompts import family_of, fill, placeholders_of
from fedsdr.distill.records import Audit, RewriteRecord, audit_of, with_rewrites
from fedsdr.distill.repair import Score, best_of, prompt_again
from fedsdr.errors import choose
from fedsdr.seeds import seed_for
from fedsdr.types import Example, Generate, Generation, GenerationRequest, Turn

Progress = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class Rewritten:
    """The examples with their rewrites (same ids and order), a record of each answer, the audit."""

    examples: tuple[Example, ...]
    records: tuple[RewriteRecord, ...]
    audit: Audit


@dataclass(frozen=True)
class _Task:
    """One answer to rewrite, its prompt's placeholders, and its key in the cache."""

    example: Example
    turn: int
    family: str
    values: Mapping[str, str]
    prompt: str
    seed: int
    attempt: int = 0

    @property
    def name(self) -> str:
        again = f"#{self.attempt}" if self.attempt else ""
        return f"{self.example.id}#{self.turn}{again}"

    @property
    def key(self) -> str:
        return cache_key(self.prompt, self.seed)


def rewrite_client(
    examples: Sequence[Example],
    *,
    generate: Generate,
    cache: RewriteCache,
    prompts: Mapping[str, str],
    filter_name: str,
    seed: int,
    attempts: int = 0,
    score: Score = lambda pairs: [0.0] * len(pairs),
    on_progress: Progress = lambda done, total: None,
) -> Rewritten:
    """Rewrite every answer of a client's examples: y' ~ teacher(. | instruction, input, y).

    `generate` is asked for what the cache lacks; each rewrite is cached as it arrives. The seed of
    a rewrite depends on `seed` and the content of its example alone, so that clients, ids, batches
    and order change nothing. A turn whose rewrite the filter refuses keeps its raw answer; with a
    filter of `ASKS_AGAIN` it is first asked for again, `attempts` times, and `score` chooses
    (repair.py). `on_progress(done, total)` counts distinct rewrites. Raises RuntimeError when
    `generate` leaves a request out or answers one twice; UserError for an unknown filter or a full
    disk.
    """
    keep_raw = choose(filter_name, FILTERS, "teacher.filter")
    tasks = _tasks(examples, prompts, seed)
    made = _fill_cache(cache, tasks, generate, on_progress)
    records = [_record(task, cache, keep_raw) for task in tasks]
    if filter_name in ASKS_AGAIN:
        again = {
            i: [_again(tasks[i], n) for n in range(1, attempts + 1)]
            for i, record in enumerate(records)
            if record.used == "raw"
        }

        def on_attempt(done: int, total: int) -> None:
            on_progress(len(tasks) + done, len(tasks) + total)

        made += _fill_cache(cache, [*chain(*again.values())], generate, on_attempt)
        for i, tries in again.items():
            tried = [_record(new, cache, keep_raw) for new in tries]
            prompt = prompts[tasks[i].family]
            records[i] = best_of(records[i], tried, prompt, tasks[i].values, score)
    return Rewritten(with_rewrites(examples, records), tuple(records), audit_of(records, made))


def _tasks(examples: Sequence[Example], prompts: Mapping[str, str], seed: int) -> list[_Task]:
    client_kind = kind_of([answer for example in examples for answer in responses_of(example)])
    tasks = []
    for example in examples:
        content = _content_hash(example)
        for turn, values in enumerate(placeholders_of(example)):
            family = family_of(values["response"], client_kind)
            prompt = fill(prompts[family], values)
            own_seed = seed_for(seed, "rewrite", content, turn)
            tasks.append(_Task(example, turn, family, values, prompt, own_seed))
    return tasks


def _again(task: _Task, attempt: int) -> _Task:
    prompt = prompt_again(task.prompt, task.family, task.values["response"])
    return replace(task, prompt=prompt, seed=seed_for(task.seed, attempt), attempt=attempt)


def _content_hash(example: Example) -> str:
    history = [{"role": turn.role, "content": turn.content} for turn in example.history]
    content = json.dumps([example.instruction, example.input, example.response, history])
    return hashlib.sha256(content.encode()).hexdigest()


def _fill_cache(
    cache: RewriteCache,
    tasks: Sequence[_Task],
    generate: Generate,
    on_progress: Progress,
) -> list[Generation]:
    """Generate what the cache lacks, each key once, and return it."""
    distinct = {task.key: task for task in tasks}
    waiting = {task.name: task for task in distinct.values() if not cache.get(task.key)}
    requests = [
        GenerationRequest(name, (Turn("user", task.prompt),), task.seed)
        for name, task in waiting.items()
    ]
    on_progress(len(distinct) - len(waiting), len(distinct))
    made: list[Generation] = []
    for generation in generate(requests, cache.teacher.decoding) if requests else ():
        if generation.id not in waiting:
            raise RuntimeError(f"the engine answered '{generation.id}' twice or unrequested")
        cache.put(waiting.pop(generation.id).key, generation)
        made.append(generation)
        on_progress(len(distinct) - len(waiting), len(distinct))
    if waiting:
        raise RuntimeError(f"the engine left out {len(waiting)} requests: {list(waiting)[:3]}")
    return made


def _record(task: _Task, cache: RewriteCache, keep_raw: Filter) -> RewriteRecord:
    made = cache.get(task.key)
    if made is None:
        raise RuntimeError(f"the cache has no rewrite of '{task.example.id}'")
    # An endpoint may send half of a surrogate pair, which no tokenizer reads.
    text = made.text.encode(errors="replace").decode().strip()
    shown, raw = "\n".join(task.values.values()), task.values["response"]
    rewrite = Rewrite(task.family, shown, raw, text, made.finished)
    kept_because = keep_raw(rewrite)
    return RewriteRecord(
        id=task.example.id,
        turn=task.turn,
        instruction=task.values["instruction"],
        raw=raw,
        rewrite=text,
        used="raw" if kept_because else "rewrite",
        reason=kept_because or sdft(rewrite),
        family=task.family,
        seed=task.seed,
        teacher=cache.teacher.fingerprint,
        new_tokens=made.new_tokens,
        finished=made.finished,
    )
