"""A run folder: whose it is, whether its run can be resumed, and opening it again."""

import dataclasses
import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsdr.config import Config, key_names, load_config, to_toml, value_of, without_password
from fedsdr.data.clients import load_clients
from fedsdr.errors import UserError
from fedsdr.evaluation.results_file import read_results
from fedsdr.federation.checkpoint import check_run, load_progress, load_state
from fedsdr.federation.round_records import best_round, read_records
from fedsdr.file_reading import RESTORE, read_json, stands
from fedsdr.files import write_atomically
from fedsdr.saved_config import read_saved, write_saved
from fedsdr.training.methods import METHODS
from fedsdr.types import ClientData, ServerState

if TYPE_CHECKING:  # imports torch, which a finished run does not need
    from fedsdr.runs.client_runtime import ClientRuntime

BEST = "best"  # the folder in a run of its best round's state

# Keys that may differ when a run is measured again; any other would be another run.
MEASURING = (
    "evaluation.max_new_tokens", "evaluation.batch_size", "evaluation.transfer",
    "evaluation.retention", "model.device", "train.pack_tokens",
)  # fmt: skip

# Keys that may differ when a run is resumed, beside those of [engine] and [log]. Activation
# checkpointing changes no bit of the result and lets a run continue that was too large for its
# machine.
_RESUMABLE = ("federation.rounds", "train.checkpointing")
NOTHING_TO_DO = "finished already, nothing to do (measure again: fedsdr evaluate)"
_AUTOMATIC = {"train.pack_tokens": 0}  # "auto" elsewhere


def open_run(run: Path, overrides: Sequence[str] = ()) -> tuple["ClientRuntime", ServerState]:
    """Load the model of a run folder and the state after its last complete round.

    UserError for overrides that would make it another run, and for damaged files.
    """
    from fedsdr.runs.client_runtime import open_runtime

    config, state = read_run(run, overrides)
    return open_runtime(config, run), state


def read_run(run: Path, overrides: Sequence[str] = ()) -> tuple[Config, ServerState]:
    """Return the configuration and the state of a run, without its model."""
    for override in overrides:
        if override.partition("=")[0].strip() not in MEASURING:
            raise UserError(
                f"--set {override}: cannot be changed for an existing run (choose from: "
                f"{', '.join(MEASURING)})"
            )
    if not (run / "config.toml").is_file():
        raise UserError(f"{run}: not a run folder (no config.toml); make one with: fedsdr run")
    state = load_state(run / "checkpoint")
    if state is None:
        raise UserError(
            f"{run}: no round is finished yet; continue with: fedsdr run CONFIG --out RUN --resume"
        )
    config = load_run_config(run / "config.toml", overrides)
    return config, served_state(run, config, state)


def served_state(run: Path, config: Config, last: ServerState) -> ServerState:
    """Return the state that is served: `last`, or with evaluation.keep = "best" that of the round
    with the lowest loss on validation rows. UserError if that one is lost."""
    if config.evaluation.keep != "best":
        return last
    found, best = best_round(read_records(run)), load_state(run / BEST / "checkpoint")
    if found is None:
        return last
    # A run that is killed between its writes leaves the best state of a round not yet counted.
    if best is None or best.round not in (found[0], last.round + 1):
        raise UserError(f"{run / BEST}: does not hold the best round, {found[0]}; {RESTORE}")
    return best


def checked_config(config: Config, out: Path, resume: bool) -> Config:
    """Return the configuration to run.

    A resumed run keeps the configuration of its folder, with "auto" resolved, and takes from
    `config` the number of rounds and what changes no result. With `resume` and no run in `out`, a
    new run starts, so that a scheduler can repeat the same command. UserError when `out` holds
    another run, or a run without `resume`.
    """
    saved = out / "config.toml"
    if not saved.exists():
        # What `fedsdr distill`, the Python API and a killed start leave.
        own = {"distilled", "data", "data.json", ".data.json.tmp", ".config.toml.tmp", ".lock"}
        if out.exists() and (not out.is_dir() or {p.name for p in out.iterdir()} - own):
            raise UserError(f"{out}: exists and is not a run folder; choose another --out")
        return config
    if not resume:
        raise UserError(
            f"{out}: holds a run already; add --resume to continue it, or choose another --out"
        )
    before = load_run_config(saved)
    for key in key_names():
        now = value_of(config, key)
        if key == "teacher.url":  # the saved one is without its password
            now = without_password(now)
        automatic = now == _AUTOMATIC.get(key, "auto")
        if not (automatic or _may_differ(key)) and value_of(before, key) != now:
            raise UserError(
                f"{saved}: '{key}' was {value_of(before, key)!r} and is now {now!r}; "
                "resume with the same value or choose another --out"
            )
    federation = dataclasses.replace(before.federation, rounds=config.federation.rounds)
    train = dataclasses.replace(before.train, checkpointing=config.train.checkpointing)
    teacher = dataclasses.replace(before.teacher, url=config.teacher.url)
    threads = config.engine.threads or before.engine.threads
    return dataclasses.replace(
        before,
        federation=federation,
        train=train,
        teacher=teacher,
        engine=dataclasses.replace(config.engine, threads=threads),
        log=config.log,
    )


def save_run_config(config: Config, path: Path) -> None:
    """Write config.toml of a run, which keeps its name from the first time on."""
    write_saved(path, to_toml(config), run_name(path.parent) or _new_name(config))


def run_name(folder: Path) -> str:
    """Return the name of the run in a folder; '' where there is none, or from an older version."""
    path = folder / "config.toml"
    return read_saved(path)[1] if stands(path) else ""


def _new_name(config: Config) -> str:
    """Return 16 hex digits that differ for runs that cannot resume each other."""
    keys = [key for key in key_names() if key != "teacher.url" and not _may_differ(key)]
    values = [(key, value_of(config, key)) for key in keys]
    return sha256(repr(values).encode()).hexdigest()[:16]


def _may_differ(key: str) -> bool:
    """Return whether a resumed run may have another value of this key."""
    return key in _RESUMABLE or key.startswith(("engine.", "log."))


def load_run_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Load config.toml of a run. UserError when it is damaged, or not that of the checkpoint."""
    check_run(path.parent)
    return load_config(path, overrides)


def finished_results(config: Config, out: Path) -> dict[str, Any] | None:
    """Return results.json when the run in `out` is finished and was measured as `config` asks, else
    None. Results without a complete run behind them do not count."""
    try:
        results = read_results(out, "")
    except UserError:  # it is measured again
        return None
    wanted = {
        "rounds": config.federation.rounds,
        "max_new_tokens": config.evaluation.max_new_tokens,
    }
    if any(results.get(key) != value for key, value in wanted.items()):
        return None
    done, accepted = load_progress(out / "checkpoint")
    phases_left = METHODS[config.method.name].afterwards and done not in (
        last - 1 for last in accepted.values()
    )
    return None if phases_left or done != config.federation.rounds else results


def finished_run(config: Config, out: Path) -> dict[str, Any] | None:
    """Return the results of a finished run in `out` that `config` would resume, else None.

    Loads neither model nor torch. UserError if `config` or its data are not those of the run.
    """
    if not (out / "config.toml").exists():
        return None
    config = checked_config(config, out, resume=True)
    if results := finished_results(config, out):
        check_data(out, load_clients(config.data))
    return results


def check_data(out: Path, clients: Sequence[ClientData]) -> None:
    """UserError when the rows of a run have changed: training rows could now be test rows."""
    path = out / "data.json"
    if not stands(path):
        if stands(out / "config.toml"):
            raise UserError(f"{path}: missing; it says with which rows this run began: restore it")
        return
    before = read_json(path, dict[str, str], RESTORE)
    now = _digests(clients)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise UserError(
                f"{path}: the data of client '{name}' have changed since this run began; "
                "put them back or choose another --out"
            )


def _digests(clients: Sequence[ClientData]) -> dict[str, str]:
    """Return a hash of each client's training, test and validation rows."""

    def rows(client: ClientData) -> object:  # without validation rows, as earlier versions
        validation = (client.validation,) if client.validation else ()
        return client.raw, client.test, *validation

    return {c.client_id: sha256(repr(rows(c)).encode()).hexdigest() for c in clients}


def start_folder(runtime: "ClientRuntime", clients: Sequence[ClientData]) -> None:
    """Write a hash of each client's rows, then the configuration, with every "auto" resolved."""
    digests = json.dumps(_digests(clients), indent=2) + "\n"
    write_atomically(runtime.folder / "data.json", digests)
    save_run_config(runtime.config, runtime.folder / "config.toml")
