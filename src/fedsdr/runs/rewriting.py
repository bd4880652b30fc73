"""Make the rewrites of clients with the teacher, and keep their audit."""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from statistics import fmean
from typing import Any

from fedsdr.distill.cache import RewriteCache
from fedsdr.distill.records import (
    Audit,
    read_audit,
    read_distilled,
    write_audit,
    write_distilled,
)
from fedsdr.distill.self_distillation import Rewritten, rewrite_client
from fedsdr.errors import UserError
from fedsdr.files import make_private, write_manifest
from fedsdr.progress import Progress, counted
from fedsdr.runs.client_runtime import ClientRuntime
from fedsdr.runs.teacher_setup import Rewriting
from fedsdr.types import ClientData, Example

# What audit.json keeps of an audit: nothing that depends on what the cache had.
AUDIT_KEYS = (
    "answers", "rewritten", "kept_raw", "sdft_would_refuse", "length_ratio", "all_new_tokens",
    "attempts", "attempt_tokens", "mended",
)  # fmt: skip


def distill_clients(
    runtime: ClientRuntime, rewriting: Rewriting, clients: Sequence[ClientData], progress: Progress
) -> dict[str, Audit]:
    """Rewrite every client's training answers and write FOLDER/distilled/CLIENT.jsonl.

    Rewrites in the cache are reused. Returns the audit of each client; the part that does not
    depend on the cache goes into FOLDER/distilled/audit.json, with the seconds taken.
    """
    settings, teacher = runtime.config.teacher, rewriting.teacher
    folder = make_private(runtime.folder / "distilled")
    (folder / "audit.json").unlink(missing_ok=True)  # it says that rewriting is complete
    progress.log(f"rewriting with {teacher.engine} ({rewriting.why}), teacher {teacher.model}")
    audits: dict[str, Audit] = {}
    seconds: dict[str, float] = {}
    for client in clients:
        began = time.perf_counter()
        ahead = fmean(seconds.values()) * (len(clients) - len(seconds) - 1) if seconds else None
        what = f"rewriting {client.client_id}"
        with progress.bar(what, len(client.raw), ahead, "until all are rewritten") as advance:
            done = 0
            counting = replace(rewriting, generate=counted(rewriting.generate, advance, 0))

            def on_progress(now: int, total: int) -> None:
                nonlocal done
                advance(now - done)
                done = now

            with runtime.model.using():
                rewritten = rewrite_answers(runtime, counting, client, on_progress)
        write_distilled(runtime.distilled(client.client_id), rewritten.records)
        audits[client.client_id] = rewritten.audit
        seconds[client.client_id] = time.perf_counter() - began
        progress.log(f"  {client.client_id}: {audit_line(rewritten.audit)}")
    facts = {
        "teacher": asdict(teacher) | {"fingerprint": teacher.fingerprint},
        "filter": settings.filter,
        "clients": {
            name: facts_of(audit) | {"seconds": seconds[name]} for name, audit in audits.items()
        },
    }
    files = (runtime.distilled(client.client_id) for client in clients)
    write_manifest(folder, files, private=True)
    write_audit(folder, facts)  # last: rewriting is complete
    return audits


def rewrite_answers(
    runtime: ClientRuntime,
    rewriting: Rewriting,
    client: ClientData,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Rewritten:
    """Rewrite one client's answers with the teacher, under the forward of the moment."""
    settings = runtime.config.teacher
    return rewrite_client(
        client.raw,
        generate=rewriting.generate,
        cache=RewriteCache(runtime.cache, rewriting.teacher),
        prompts=rewriting.prompts,
        filter_name=settings.filter,
        seed=settings.seed,
        attempts=settings.attempts,
        score=functools.partial(_likelihoods, runtime),
        on_progress=on_progress,
    )


def facts_of(audit: Audit) -> dict[str, Any]:
    """Return what is kept of an audit: `AUDIT_KEYS`."""
    return {key: getattr(audit, key) for key in AUDIT_KEYS}


def _likelihoods(runtime: ClientRuntime, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Return log p0(answer | prompt) of the base, in nats a token.

    A prompt holds an instruction, an answer and a rewrite: twice the length of a training row and
    a rewrite more are enough.
    """
    limit = 2 * runtime.config.data.max_length + runtime.config.teacher.max_new_tokens
    examples = [Example("", prompt, "", answer) for prompt, answer in pairs]
    rows = [runtime.renderer.encode(example, limit) for example in examples]
    with runtime.model.using():
        return [-loss / max(1, count) for loss, count in runtime.losses_of(rows)]


def audit_line(audit: Audit) -> str:
    """Return one client's audit in words."""
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(audit.kept_raw.items()))
    kept = f", kept raw: {reasons}" if reasons else ""
    counts = {n: sum(of.values()) for n, of in audit.mended.items()}
    mended = ", ".join(f"{count} by attempt {n}" for n, count in counts.items())
    again = f"; asked again {audit.attempts} times, mended {mended or 'none'}"
    return (
        f"{audit.rewritten} of {audit.answers} answers rewritten{kept}; "
        f"length x{audit.length_ratio:.2f}; {audit.new_tokens} new tokens, "
        f"{audit.from_cache} from the cache{again if audit.attempts else ''}"
    )


def has_rewrites(runtime: ClientRuntime, clients: Sequence[ClientData]) -> bool:
    """Return whether FOLDER/distilled has a rewrite of every answer.

    A resumed run keeps them, so that a new version of an engine cannot change its data.
    """
    if not read_audit(runtime.folder / "distilled"):
        if runtime.method.rewrites and (runtime.folder / "checkpoint").exists():
            path = runtime.folder / "distilled" / "audit.json"
            raise UserError(f"{path}: missing, though rounds are done; restore it from a copy")
        return False
    for client in clients:
        read_distilled(runtime.distilled(client.client_id), client.raw)
    return True
