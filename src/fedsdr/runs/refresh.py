"""New rewrites during a run, by the then global model (`teacher.refresh`; the paper's Eq. 1).

FOLDER/distilled/round-0003/CLIENT/    the rewrites that the model after round 3 made, their audit
                                       and a manifest: complete or absent
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors.torch import save

from fedsdr.distill.records import lost_audit, read_audit, write_distilled
from fedsdr.errors import UserError
from fedsdr.file_reading import RESTORE, stands
from fedsdr.files import check_manifest, write_folder
from fedsdr.runs.client_runtime import ClientRuntime
from fedsdr.runs.rewriting import audit_line, facts_of, rewrite_answers
from fedsdr.runs.teacher_setup import live_teacher
from fedsdr.training.shared_factors import starting_factors
from fedsdr.types import ClientData, ClientTask


def refresh_rewrites(
    runtime: ClientRuntime, client: ClientData, task: ClientTask, log: Callable[[str], None]
) -> None:
    """Rewrite a client's answers with the global model of the task, where that is due.

    It is due in a client's first task after every `teacher.refresh` rounds. A client that was not
    asked in that round uses the global model of the next one in which it is. UserError for damage.
    """
    path = runtime.distilled(client.client_id, task.round)
    folder = path.parent
    if not runtime.method.rewrites or folder == runtime.folder / "distilled":
        return
    if stands(folder):
        check_manifest(folder, RESTORE)
        return
    if runtime.distilled(client.client_id, task.accepted_round) == path:
        raise UserError(f"{folder}: missing; this client was trained on it: {RESTORE}")
    began = time.perf_counter()
    runtime.model.set(starting_factors(task, runtime.method, runtime.model, {}))
    with runtime.model.using(*runtime.method.global_model):
        rewriting = live_teacher(runtime, sha256(save(task.shared)).hexdigest()[:16])
        rewritten = rewrite_answers(runtime, rewriting, client)
    facts = facts_of(rewritten.audit) | {"seconds": time.perf_counter() - began}
    text = json.dumps({"clients": {client.client_id: facts}}, indent=2) + "\n"

    def write(new: Path) -> None:
        write_distilled(new / path.name, rewritten.records)
        (new / "audit.json").write_text(text, encoding="utf-8")

    write_folder(folder, write, private=True, manifest=True)
    log(f"  {client.client_id}: {audit_line(rewritten.audit)}")


def rewriting_audits(
    runtime: ClientRuntime, records: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield the audit of each client, before round 1 and of each refresh.

    UserError when the audit of rewrites is lost that a client of `records` was trained on.
    """
    first = runtime.folder / "distilled"
    trained = {
        runtime.distilled(client["id"], record["round"]).parent
        for record in records
        for client in record["clients"]
        if runtime.method.rewrites
    }
    for folder in sorted({first, *first.glob("round-*/*"), *trained}):
        if audit := read_audit(folder):
            yield from audit["clients"].values()
        elif folder in trained:
            raise lost_audit(folder)
