"""What stands in the folder of a run, a comparison or a deployed federation, while it works."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from fedsdr.config import Config
from fedsdr.errors import UserError
from fedsdr.federation.round_records import RECORDS, parse_records
from fedsdr.progress import Step, duration
from fedsdr.runs.run_folder import load_run_config
from fedsdr.runs.run_status import read_status


@dataclass(frozen=True)
class Watched:
    """A run folder at one moment."""

    folder: Path
    config: Config
    records: Sequence[Mapping[str, Any]]  # the complete lines of rounds.jsonl
    step: Step | None  # what is done now
    running: bool
    finished: bool

    @property
    def rounds(self) -> int:
        """The number of rounds that are done."""
        return min(len(self.records), self.config.federation.rounds)

    @property
    def left(self) -> str:
        """The time left, in words; "" if it is unknown or nothing runs."""
        if not self.running:
            return ""
        if self.step is not None and self.step.left is not None:
            return self.step.text.rpartition(", ")[2]
        if self.records and self.rounds < self.config.federation.rounds:
            seconds = fmean(record["seconds"] for record in self.records)
            left = seconds * (self.config.federation.rounds - self.rounds)
            return f"{duration(left)} until evaluation"
        return ""


def watch_run(folder: Path) -> Watched:
    """Read a run folder, without a lock. UserError if there is no run."""
    if not (folder / "config.toml").is_file():
        raise UserError(f"{folder}: not a run or a comparison yet; start one with: fedsdr run")
    status = read_status(folder)
    config, records = load_run_config(folder / "config.toml"), _complete_records(folder)
    return Watched(
        folder=folder,
        config=config,
        records=records,
        step=status.step if status else None,
        running=status is not None,
        finished=(folder / "results.json").exists() and len(records) >= config.federation.rounds,
    )


def cells_of(folder: Path) -> list[Watched]:
    """Return the runs of a comparison that were started, by name; [] for a single run."""
    started = sorted(folder.glob("cells/*/config.toml"))
    return [watch_run(path.parent) for path in started]


def _complete_records(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of rounds.jsonl; the last may just be written."""
    path = folder / RECORDS
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return parse_records(lines[:-1], path)
