"""What a client keeps on its own disk between rounds: S, SCAFFOLD's c_k, what rounding took, and
the noisy update of local privacy, since the same answer with fresh noise would tell more.

    FOLDER/round-0003/adapter_model.safetensors   S after round 3, as a PEFT adapter
    FOLDER/round-0003/control.safetensors         c_k after round 3
    FOLDER/round-0003/residual.safetensors        what the update of round 3 lost to rounding
    FOLDER/round-0003/sent.safetensors            the update of round 3, if it has noise of its own
    FOLDER/adapter_model.safetensors              the last S

Two rounds are kept: the one just made, and the one that the server last counted. A client whose
result was lost goes on from the latter.
"""

import functools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fedsdr.errors import UserError
from fedsdr.files import write_file, write_folder
from fedsdr.models.adapters import (
    CONFIG,
    WEIGHTS,
    load_adapter,
    peft_config,
    peft_tensors,
    write_adapter_files,
)
from fedsdr.tensors import Tensors
from fedsdr.types import S

CONTROL, RESIDUAL, SENT = "control.safetensors", "residual.safetensors", "sent.safetensors"


class Kept(NamedTuple):
    """What a client knows after a round and nobody else does; empty is what there is none of."""

    private: Tensors  # S
    control: Tensors  # SCAFFOLD's c_k
    residual: Tensors  # dR that was rounded away and is still to be sent
    sent: Tensors  # dR with local noise


@dataclass(frozen=True)
class ClientStore:
    """A client's folder, and what PEFT's configuration file needs to name."""

    folder: Path
    alpha: float
    base_name: str

    def round_folder(self, round: int) -> Path:
        """Return where the state after `round` is."""
        return self.folder / f"round-{round:04d}"

    def load(self, round: int) -> Kept:
        """Return what was kept after `round`; all of it empty for round 0.

        UserError when the round's folder is gone: S would silently start anew.
        """
        folder = self.round_folder(round)
        if round == 0:
            return Kept({}, {}, {}, {})
        if not folder.is_dir():
            raise UserError(f"{folder}: missing; it holds this client's state after round {round}")
        private = load_adapter(folder, S) if (folder / WEIGHTS).exists() else {}
        return Kept(private, *(_read(folder / name) for name in (CONTROL, RESIDUAL, SENT)))

    def newest(self) -> int:
        """Return the last round of which anything is kept; 0 when there is none."""
        return max(self._rounds(), default=0)

    def _rounds(self) -> dict[int, Path]:
        return {int(p.name.removeprefix("round-")): p for p in self.folder.glob("round-*")}

    def save(self, round: int, kept: Kept, *, accepted: int) -> None:
        """Keep the state after `round` and after `accepted`, and nothing older: a task that ends
        late must not take away what a later one has kept."""

        def write(folder: Path) -> None:
            if kept.private:
                config = peft_config(kept.private, S, alpha=self.alpha, base_name=self.base_name)
                write_adapter_files(folder, peft_tensors(kept.private, S), config)
            named = {CONTROL: kept.control, RESIDUAL: kept.residual, SENT: kept.sent}
            for name, tensors in named.items():
                if tensors:
                    save_file(tensors, folder / name)

        write_folder(self.round_folder(round), write)
        self.publish(max(self._rounds()))
        for before, folder in self._rounds().items():
            if before < round and before != accepted:
                shutil.rmtree(folder)

    def publish(self, round: int) -> None:
        """Make the S after `round` the one that lies at the top of the folder."""
        for name in (WEIGHTS, CONFIG):
            source, target = self.round_folder(round) / name, self.folder / name
            if source.exists():
                write_file(target, functools.partial(shutil.copyfile, source))


def _read(path: Path) -> Tensors:
    try:
        return load_file(path) if path.exists() else {}
    except SafetensorError as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
