"""A run's folder: whose it is, whether it may be gone on with, and opening it again."""

import dataclasses
import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from fedsdr.config import Config, key_names, load_config, save_config, value_of
from fedsdr.errors import UserError
from fedsdr.federation.checkpoint import load_state
from fedsdr.files import write_atomically
from fedsdr.runs.client_runtime import Site, open_site
from fedsdr.types import ClientData, ServerState

# What may differ when a run is measured again: all else would be another run, or other rows.
MEASURING = ("evaluation.max_new_tokens", "evaluation.batch_size", "model.device",
             "train.pack_tokens")  # fmt: skip

# What may differ when a run is gone on with: checkpointing changes no bit of what is learnt, and
# is what lets a run go on that was too large for its machine.
_RESUMABLE = ("federation.rounds", "train.checkpointing")  # and where it runs: [engine]
_AUTOMATIC = {"train.pack_tokens": 0}  # "auto" elsewhere


def open_run(run: Path, overrides: Sequence[str] = ()) -> tuple[Site, ServerState]:
    """Open a run folder with its model and the state after its last whole round.

    UserError for overrides that would make it another run, and for data that have changed.
    """
    config, state = read_run(run, overrides)
    return open_site(config, run), state


def read_run(run: Path, overrides: Sequence[str] = ()) -> tuple[Config, ServerState]:
    """Return what `open_run` goes by, without its model."""
    for override in overrides:
        if override.partition("=")[0].strip() not in MEASURING:
            raise UserError(
                f"--set {override}: not of a finished run (what may be set: {', '.join(MEASURING)})"
            )
    if not (run / "config.toml").is_file():
        raise UserError(f"{run}: not a run folder (no config.toml); make one with: fedsdr run")
    state = load_state(run / "checkpoint")
    if state is None:
        raise UserError(f"{run}: no round is finished yet; go on with: fedsdr run --resume")
    return load_config(run / "config.toml", overrides), state


def checked_config(config: Config, out: Path, resume: bool) -> Config:
    """Return the configuration to run: that of the folder when its run is resumed, where "auto"
    is what it came to, with as many rounds as are asked for now.

    UserError when `out` holds another run, or a run that nobody asked to go on with.
    """
    saved = out / "config.toml"
    if not saved.exists():
        # `fedsdr distill` leaves its rewrites there for the run that follows.
        own = {"distilled", ".config.toml.tmp", ".lock"}
        if out.exists() and (not out.is_dir() or {p.name for p in out.iterdir()} - own):
            raise UserError(f"{out}: exists and is not a run folder; choose another --out")
        if resume:
            raise UserError(f"{out}: no run to resume there; leave --resume out to start one")
        return config
    if not resume:
        raise UserError(
            f"{out}: holds a run already; add --resume to go on, or choose another --out"
        )
    before = load_config(saved)
    for key in key_names():
        now = value_of(config, key)
        automatic = now == _AUTOMATIC.get(key, "auto")
        may_differ = key in _RESUMABLE or key.startswith("engine.")
        if not may_differ and not automatic and value_of(before, key) != now:
            raise UserError(
                f"{saved}: '{key}' was {value_of(before, key)!r} and is now {now!r}; "
                "resume with the same value or choose another --out"
            )
    federation = dataclasses.replace(before.federation, rounds=config.federation.rounds)
    train = dataclasses.replace(before.train, checkpointing=config.train.checkpointing)
    return dataclasses.replace(before, federation=federation, train=train, engine=config.engine)


def check_data(out: Path, clients: Sequence[ClientData]) -> None:
    """UserError when the rows of a run have changed: trained rows could now be test rows."""
    path = out / "data.json"
    if not path.exists():
        return
    before, now = json.loads(path.read_text(encoding="utf-8")), _digests(clients)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise UserError(
                f"{path}: the data of client '{name}' are not those that this run began with; "
                "put them back or choose another --out"
            )


def _digests(clients: Sequence[ClientData]) -> dict[str, str]:
    """Return a hash of each client's training and test rows."""
    return {c.client_id: sha256(repr((c.raw, c.test)).encode()).hexdigest() for c in clients}


def start_folder(site: Site, clients: Sequence[ClientData]) -> None:
    """Write what identifies the run: its configuration, with what "auto" came to, so that it
    repeats elsewhere, and a hash of each client's rows."""
    save_config(site.config, site.folder / "config.toml")
    digests = json.dumps(_digests(clients), indent=2) + "\n"
    write_atomically(site.folder / "data.json", digests)
