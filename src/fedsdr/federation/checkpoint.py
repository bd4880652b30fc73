"""The server's state on disk, one folder a round, written whole or not at all.

    FOLDER/round-0003/{shared,memory.m,memory.v,control}.safetensors, state.json

`memory.*` is the optimizer state. The newest complete round counts. Older rounds are removed after
the newer one is in place, so a full disk or a kill leaves the last complete one.
"""

import json
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fedsdr.errors import UserError
from fedsdr.files import numbered_folders, write_folder
from fedsdr.tensors import Tensors
from fedsdr.types import ServerState


def save_state(folder: Path, state: ServerState) -> None:
    """Write the state of `state.round`, then remove older rounds. UserError on a full disk."""

    def write(target: Path) -> None:
        for name, tensors in _parts(state).items():
            save_file(tensors, target / f"{name}.safetensors")
        facts = {
            "round": state.round,
            "accepted": dict(sorted(state.accepted.items())),
            "parts": sorted(_parts(state)),
            "memory": sorted(state.optimizer_state),  # a moment without tensors has no file
            "draws": state.draws,
        }
        (target / "state.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    newest = folder / f"round-{state.round:04d}"
    write_folder(newest, write)
    for number, old in numbered_folders(folder, "round-").items():
        if number != state.round:
            shutil.rmtree(old)
    for unfinished in folder.glob(".round-*"):  # left by a kill
        shutil.rmtree(unfinished, ignore_errors=True)


def load_state(folder: Path) -> ServerState | None:
    """Return the newest complete state, or None when there is none. UserError when it is broken."""
    rounds = [
        p for p in numbered_folders(folder, "round-").values() if (p / "state.json").is_file()
    ]
    if not rounds:
        return None
    newest = rounds[-1]
    try:
        facts = json.loads((newest / "state.json").read_text(encoding="utf-8"))
        parts = {name: load_file(newest / f"{name}.safetensors") for name in facts["parts"]}
        return ServerState(
            round=facts["round"],
            shared=parts.get("shared", {}),
            optimizer_state={name: parts.get(f"memory.{name}", {}) for name in facts["memory"]},
            control=parts.get("control", {}),
            accepted=facts["accepted"],
            draws=tuple((clients, asked) for clients, asked in facts.get("draws", ())),
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(
            f"{newest}: the checkpoint cannot be read ({error}); "
            "remove that folder to start from round 1"
        ) from None


def _parts(state: ServerState) -> dict[str, Tensors]:
    parts = {"shared": state.shared, "control": state.control}
    parts |= {f"memory.{name}": tensors for name, tensors in state.optimizer_state.items()}
    return {name: tensors for name, tensors in parts.items() if tensors}
