"""The server's state on disk, one folder a round, written whole or not at all.

    FOLDER/round-0003/{shared,memory.m,memory.v,control}.safetensors, state.json

`memory.*` is the optimizer state. The newest complete round counts. Older rounds are removed after
the newer one is in place, so a full disk or a kill leaves the last complete one.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, PositiveInt

from fedsdr.errors import UserError
from fedsdr.file_reading import RESTORE, read_json, read_tensors, stands
from fedsdr.files import check_manifest, numbered_folders, write_folder
from fedsdr.saved_config import read_saved
from fedsdr.types import ServerState

if TYPE_CHECKING:  # imports torch, which a finished run does not need
    from fedsdr.tensors import Tensors

FIX = "restore that folder from a copy, or start a new run in another --out"


class Facts(BaseModel, strict=True):
    """What must be in state.json."""

    round: PositiveInt
    accepted: dict[str, PositiveInt]
    parts: list[str]
    memory: list[str]
    draws: list[tuple[PositiveInt, PositiveInt]] = []
    records: str = ""
    chain: str = ""
    run: str = ""


class RecordsMark(NamedTuple):
    """What a checkpoint says of rounds.jsonl."""

    lines: int
    chain: str  # see round_records.py
    whole: str  # the digest that older versions wrote


def save_state(folder: Path, state: ServerState, *, chain: str = "", run: str = "") -> None:
    """Write the state of `state.round`, then remove older rounds. UserError on a full disk.

    Beside the state stand `chain`, the digest of rounds.jsonl at this round, and `run`, the name of
    the run in config.toml.
    """

    from safetensors.torch import save_file

    def write(target: Path) -> None:
        for name, tensors in _parts(state).items():
            save_file(tensors, target / f"{name}.safetensors")
        facts = {
            "round": state.round,
            "accepted": dict(sorted(state.accepted.items())),
            "parts": sorted(_parts(state)),
            "memory": sorted(state.optimizer_state),  # a moment without tensors has no file
            "draws": state.draws,
            "chain": chain,
            "run": run,
        }
        (target / "state.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    newest = folder / f"round-{state.round:04d}"
    write_folder(newest, write, manifest=True)
    for number, old in numbered_folders(folder, "round-").items():
        if number != state.round:
            shutil.rmtree(old)
    for unfinished in folder.glob(".round-*"):  # left by a kill
        shutil.rmtree(unfinished, ignore_errors=True)


def load_state(folder: Path) -> ServerState | None:
    """Return the newest state, or None when there is none. UserError when it is damaged."""

    newest = _newest(folder)
    if newest is None:
        return None
    facts = _read_facts(newest)
    parts = {name: read_tensors(newest / f"{name}.safetensors", FIX) for name in facts["parts"]}
    return ServerState(
        round=facts["round"],
        shared=parts.get("shared", {}),
        optimizer_state={name: parts.get(f"memory.{name}", {}) for name in facts["memory"]},
        control=parts.get("control", {}),
        accepted=facts["accepted"],
        draws=tuple((clients, asked) for clients, asked in facts.get("draws", ())),
    )


def load_progress(folder: Path) -> tuple[int, dict[str, int]]:
    """Return `round` and `accepted` of the newest state without its tensors; (0, {}) without one.

    UserError when it is damaged.
    """
    newest = _newest(folder)
    if newest is None:
        return 0, {}
    facts = _read_facts(newest)
    return facts["round"], facts["accepted"]


def last_line(round: int, accepted: Mapping[str, int]) -> int:
    """Return the number of lines of rounds.jsonl; phases after the last round have one more."""
    return max([round, *accepted.values()])


def records_mark(folder: Path, *, check: bool = True) -> RecordsMark | None:
    """Return what the newest state says of rounds.jsonl, None without a state; without `check` its
    files are not hashed."""
    newest = _newest(folder, check=check)
    if newest is None:
        return None
    facts = _read_facts(newest)
    lines = last_line(facts["round"], facts["accepted"])
    return RecordsMark(lines, facts.get("chain", ""), facts.get("records", ""))


def check_run(run: Path) -> None:
    """UserError when config.toml of a run folder is damaged, or not that of its checkpoint."""
    path, newest = run / "config.toml", _newest(run / "checkpoint")
    saved = newest and _read_facts(newest).get("run", "")
    if stands(path) and read_saved(path)[1] != saved and saved:
        raise UserError(f"{path}: is not that of the run in checkpoint/; {RESTORE}")


def _newest(folder: Path, *, check: bool = True) -> Path | None:
    rounds = list(numbered_folders(folder, "round-").values())
    if not rounds:
        return None
    if check:
        check_manifest(rounds[-1], FIX)
    return rounds[-1]


def _read_facts(newest: Path) -> dict[str, Any]:
    facts: dict[str, Any] = read_json(newest / "state.json", Facts, FIX)
    return facts


def _parts(state: ServerState) -> dict[str, "Tensors"]:
    parts = {"shared": state.shared, "control": state.control}
    parts |= {f"memory.{name}": tensors for name, tensors in state.optimizer_state.items()}
    return {name: tensors for name, tensors in parts.items() if tensors}
