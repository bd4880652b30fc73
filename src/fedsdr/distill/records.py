"""The outcome of rewriting: a record of each answer, which stays at the client, and counts."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from fedsdr.data.chat_templates import responses_of, with_responses
from fedsdr.errors import UserError
from fedsdr.file_reading import RESTORE, parse_json, read_json, read_text, stands
from fedsdr.files import (
    MANIFEST,
    check_manifest,
    digest_without_seconds,
    sha256_of,
    write_atomically,
)
from fedsdr.types import Example, Generation

MAKE_THEM = "make them with: fedsdr distill"


@dataclass(frozen=True)
class RewriteRecord:
    """One line of OUT/distilled/CLIENT.jsonl: one answer, that is, one assistant turn.

    `reason` is why the run's filter keeps the raw answer, else why the sdft filter would, else ''.
    """

    id: str
    turn: int  # 0 is the first assistant turn of the example
    instruction: str
    raw: str
    rewrite: str
    used: Literal["rewrite", "raw"]
    reason: str
    family: str
    seed: int
    teacher: str  # fingerprint
    new_tokens: int
    finished: bool
    # Of the filter "repair"; left out of the file where they are 0 or ''.
    attempts: int = 0  # how often the answer was asked for again
    attempt: int = 0  # which of them `rewrite` is; 0: the first rewrite
    mended: str = ""  # why the first rewrite was refused, where a later one is used
    other_tokens: int = 0  # new tokens of the texts that are not `rewrite`


class SavedClient(BaseModel, extra="allow", strict=True, allow_inf_nan=False):
    """What must be in audit.json of one client."""

    answers: int
    rewritten: int
    kept_raw: dict[str, int]
    length_ratio: float
    all_new_tokens: int
    seconds: float = 0.0


class SavedAudit(BaseModel, extra="allow", strict=True):
    """What must be in audit.json."""

    clients: dict[str, SavedClient]


@dataclass(frozen=True)
class Audit:
    """Counts of the rewriting of one client, in answers."""

    answers: int
    rewritten: int  # answers whose rewrite is used
    kept_raw: Mapping[str, int]  # reason -> answers whose raw text is used
    sdft_would_refuse: Mapping[str, int]  # reason -> answers, whatever the filter
    length_ratio: float  # mean of words in the rewrite / words in the raw answer, if used
    all_new_tokens: int  # of all rewrites and attempts, cached ones included
    generated: int  # rewrites made now; the others were cached or repeat another row
    new_tokens: int  # generated now
    prompt_tokens: int  # read now
    attempts: int = 0  # answers asked for again, each time counted
    attempt_tokens: int = 0  # new tokens of the texts that were made and not used
    mended: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # attempt -> reason -> n

    @property
    def from_cache(self) -> int:
        """Rewrites and attempts that were not generated now."""
        return self.answers + self.attempts - self.generated

    @property
    def share_rewritten(self) -> float:
        """The share of answers whose rewrite is used; 0 without answers."""
        return self.rewritten / max(1, self.answers)


def audit_of(records: Sequence[RewriteRecord], made: Sequence[Generation] = ()) -> Audit:
    """Count the records of one client; `made` are the rewrites generated now."""
    used = [record for record in records if record.used == "rewrite"]
    ratios = [len(r.rewrite.split()) / max(1, len(r.raw.split())) for r in used]
    return Audit(
        answers=len(records),
        rewritten=len(used),
        kept_raw=dict(Counter(r.reason for r in records if r.used == "raw")),
        sdft_would_refuse=dict(Counter(r.reason for r in records if r.reason)),
        length_ratio=sum(ratios) / max(1, len(ratios)),
        all_new_tokens=sum(record.new_tokens + record.other_tokens for record in records),
        generated=len(made),
        new_tokens=sum(generation.new_tokens for generation in made),
        prompt_tokens=sum(generation.prompt_tokens for generation in made),
        attempts=sum(record.attempts for record in records),
        attempt_tokens=sum(record.other_tokens for record in records),
        mended=_mended(records),
    )


def _mended(records: Sequence[RewriteRecord]) -> dict[str, dict[str, int]]:
    """Return how many answers each attempt mended, by what was wrong with the first rewrite."""
    mended: dict[str, Counter[str]] = {}
    for record in sorted(records, key=lambda record: record.attempt):
        if record.attempt:
            mended.setdefault(str(record.attempt), Counter())[record.mended] += 1
    return {attempt: dict(reasons) for attempt, reasons in mended.items()}


def with_rewrites(
    examples: Sequence[Example], records: Iterable[RewriteRecord]
) -> tuple[Example, ...]:
    """Return the examples with the answers that the records use, in order."""
    used = iter([record.raw if record.used == "raw" else record.rewrite for record in records])
    return tuple(
        with_responses(example, [next(used) for _ in responses_of(example)]) for example in examples
    )


def write_distilled(path: str | Path, records: Iterable[RewriteRecord]) -> None:
    """Write the records as JSON lines, whole or not at all. UserError when the disk refuses."""
    text = "".join(json.dumps(_written(record)) + "\n" for record in records)
    write_atomically(Path(path), text, private=True)


def _written(record: RewriteRecord) -> dict[str, Any]:
    values = asdict(record)
    return {f.name: values[f.name] for f in fields(record) if values[f.name] != f.default}


def read_distilled(path: str | Path, examples: Sequence[Example]) -> tuple[Example, ...]:
    """Return the rewritten examples from a file of records made for these raw examples.

    Records of other examples are ignored. UserError names the file, and the line or the example,
    when the file is missing or broken, or when an answer has no record or has changed since.
    """
    records = {(record.id, record.turn): record for record in read_records(path)}
    chosen = []
    for example in examples:
        for turn, raw in enumerate(responses_of(example)):
            record = records.get((example.id, turn))
            if record is None or record.raw != raw:
                wrong = "has no rewrite" if record is None else "has changed since its rewrite"
                raise UserError(f"{path}: '{example.id}' {wrong}; {MAKE_THEM}")
            chosen.append(record)
    return with_rewrites(examples, chosen)


def read_records(path: str | Path) -> tuple[RewriteRecord, ...]:
    """Return the records of a file. UserError names the file and the line that cannot be read."""
    path = Path(path)
    lines = read_text(path, MAKE_THEM, f"no such file; {MAKE_THEM}").split("\n")
    return tuple(
        RewriteRecord(
            **parse_json(line, RewriteRecord, f"{path}, line {number}: not a rewrite", MAKE_THEM)
        )
        for number, line in enumerate(lines, start=1)
        if line
    )


def lost_audit(folder: Path) -> UserError:
    """Return the error of a folder of rewrites that has no audit.json any more."""
    return UserError(f"{folder / 'audit.json'}: missing; {RESTORE}")


def write_audit(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write audit.json of a folder of rewrites whose manifest is written."""
    audit = {**facts, "manifest": sha256_of(folder / MANIFEST)}
    audit["check"] = digest_without_seconds(audit)
    text = json.dumps(audit, indent=2) + "\n"
    write_atomically(folder / "audit.json", text, private=True)


def read_audit(folder: Path) -> dict[str, Any]:
    """Return audit.json of a folder of rewrites; empty where it does not exist, since rewriting is
    not complete then.

    UserError when it, or a file of rewrites, is damaged.
    """
    path = folder / "audit.json"
    if not stands(path):
        return {}
    check_manifest(folder, "restore it, or remove the folder to make the rewrites again")
    audit: dict[str, Any] = read_json(path, SavedAudit, RESTORE)
    check = audit.pop("check", None)  # older versions wrote none
    if check is not None and check != digest_without_seconds(audit):
        raise UserError(f"{path}: damaged (its checksum is wrong); {RESTORE}")
    manifest = audit.pop("manifest", None)
    if manifest is not None and manifest != sha256_of(folder / MANIFEST):
        raise UserError(f"{path}: is not that of the rewrites beside it; {RESTORE}")
    return audit
