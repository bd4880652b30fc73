"""What a client keeps on its own disk between rounds.

    FOLDER/round-0003/adapter_model.safetensors   S after round 3, as a PEFT adapter
    FOLDER/round-0003/control.safetensors         SCAFFOLD's c_k after round 3
    FOLDER/round-0003/residual.safetensors        the rounding error of the update of round 3
    FOLDER/round-0003/sent.safetensors            the update of round 3, if the client added noise
    FOLDER/round-0003/unsent.safetensors          factors of R that are never sent (share-a)
    FOLDER/adapter_model.safetensors              the last S
    FOLDER/base-KEY/kept.safetensors              what the base says of the client's rows

Two rounds are kept: the last one, and the last one that the server accepted. A client whose result
was lost starts from the latter.
"""

import functools
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from fedsdr.config import LoraConfig
from fedsdr.errors import UserError
from fedsdr.file_reading import RESTORE, read_tensors, stands
from fedsdr.files import (
    check_manifest,
    make_private,
    numbered_folders,
    write_file,
    write_folder,
)
from fedsdr.models.adapters import (
    CONFIG,
    WEIGHTS,
    load_adapter,
    peft_config,
    peft_tensors,
    write_adapter_files,
)
from fedsdr.tensors import Tensors, difference_in_spec
from fedsdr.types import S

KEPT = "kept.safetensors"
CONTROL, RESIDUAL = "control.safetensors", "residual.safetensors"
SENT, UNSENT = "sent.safetensors", "unsent.safetensors"


@dataclass(frozen=True)
class ClientState:
    """The private state of a client after a round; what a run does not use is empty."""

    private: Tensors = field(default_factory=dict)  # S
    control: Tensors = field(default_factory=dict)  # SCAFFOLD's c_k
    residual: Tensors = field(default_factory=dict)  # rounding error, added to the next update
    sent: Tensors = field(default_factory=dict)  # dR with local noise
    unsent: Tensors = field(default_factory=dict)  # factors of R that stay with the client

    @property
    def own(self) -> Tensors:
        """What of the client's model is its own."""
        return {**self.private, **self.unsent}


@dataclass(frozen=True)
class ClientStore:
    """The private folder of one client; `lora` and `base_name` go into PEFT's configuration."""

    folder: Path
    lora: LoraConfig
    base_name: str

    def round_folder(self, round: int) -> Path:
        """Return the folder of the state after `round`."""
        return self.folder / f"round-{round:04d}"

    def load(self, round: int, like: Mapping[str, Tensor] | None = None) -> ClientState:
        """Return the state after `round`; the empty state for round 0.

        UserError when it is missing or damaged, or S has other names or shapes than `like`: S must
        not silently start anew.
        """
        folder = self.round_folder(round)
        if round == 0:
            return ClientState()
        if not folder.is_dir():
            raise UserError(f"{folder}: missing; it holds this client's state after round {round}")
        check_manifest(folder, f"it is this client's state after round {round}: restore it")
        private = load_adapter(folder, S) if stands(folder / WEIGHTS) else {}
        if like and (difference := difference_in_spec(private, like)):
            raise UserError(f"{folder / WEIGHTS}: {difference}; restore the S of round {round}")
        names = (CONTROL, RESIDUAL, SENT, UNSENT)
        return ClientState(private, *(_read(folder / name) for name in names))

    def newest(self, before: float = math.inf) -> int:
        """Return the last round, of those before `before`, whose state is kept, or 0."""
        kept = numbered_folders(self.folder, "round-")
        return max((round for round in kept if round < before), default=0)

    def save(self, round: int, state: ClientState, *, accepted: int) -> None:
        """Write the state after `round`; remove older rounds, except `accepted`.

        Later rounds stay: a task that ends late must not remove the state of a later one.
        """

        def write(folder: Path) -> None:
            if state.private:
                config = peft_config(state.private, S, lora=self.lora, base_name=self.base_name)
                write_adapter_files(folder, peft_tensors(state.private, S), config)
            named = {CONTROL: state.control, RESIDUAL: state.residual}
            named |= {SENT: state.sent, UNSENT: state.unsent}
            for name, tensors in named.items():
                if tensors:
                    save_file(tensors, folder / name)

        make_private(self.folder)
        write_folder(self.round_folder(round), write, private=True, manifest=True)
        self.publish(self.round_folder(self.newest()))
        for before, folder in numbered_folders(self.folder, "round-").items():
            if before < round and before != accepted:
                shutil.rmtree(folder)

    def kept(self, key: str, make: Callable[[], Tensor]) -> Tensor:
        """Return a tensor that only the base and the client's rows decide, made at the first call.

        `key` names these rows. UserError when the kept one is damaged.
        """
        folder = self.folder / f"base-{key}"
        if not folder.is_dir():
            tensors = {"kept": make().contiguous()}
            make_private(self.folder)
            write_folder(
                folder, lambda new: save_file(tensors, new / KEPT), private=True, manifest=True
            )
        fix = "remove this folder: it is made anew"
        check_manifest(folder, fix)
        return read_tensors(folder / KEPT, fix)["kept"]

    def publish(self, round_folder: Path) -> None:
        """Copy the S of a round's folder to the top of the store."""
        for name in (WEIGHTS, CONFIG):
            source, target = round_folder / name, self.folder / name
            if source.exists():
                write_file(target, functools.partial(shutil.copyfile, source), private=True)


def _read(path: Path) -> Tensors:
    return read_tensors(path, RESTORE) if stands(path) else {}
