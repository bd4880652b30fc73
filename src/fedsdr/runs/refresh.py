"""New rewrites during a run, by the then global model (`teacher.refresh`; the paper's Eq. 1).

FOLDER/distilled/round-0003/CLIENT/    the rewrites that the model after round 3 made, their audit
                                       and a manifest: complete or absent
"""

import json
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors.torch import save

from fedsdr.distill.records import read_audit, write_distilled
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
    if folder.exists():
        check_manifest(folder, "restore it, or remove the folder to make the rewrites again")
        return
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


def refresh_audits(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the audit of each client and refresh of a run."""
    for path in sorted((folder / "distilled").glob("round-*/*/audit.json")):
        yield from read_audit(path.parent)["clients"].values()
