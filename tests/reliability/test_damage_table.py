"""Every file of a run folder, damaged in every way, under every command that reads a run.

Each case is found (exit code 2, one line) or harmless (exit code 0, the result of the undamaged
folder). Without --full, a few cases that are spread over the table.
"""

import io
import itertools
import json
import os
import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
from forked import Ended, command, forked
from small_run import CONFIG, facts_of

from fedsdr.files import digest_without_seconds

SETS = (
    "data.validation_fraction=0.3", "evaluation.every=1", "evaluation.keep=best",
    "teacher.refresh=1",
)  # fmt: skip
# What no command reads: outputs for the user; one client stands for all.
NOT_READ = re.compile(r"lock|report|best.json|^global|clinic|school")


def flipped(content):
    at = len(content) * 2 // 3
    return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]


DAMAGES = {
    "missing": None,
    "empty": lambda content, other: b"",
    "cut off": lambda content, other: content[: len(content) // 2],
    "one bit flipped": lambda content, other: flipped(content),
    "garbage": lambda content, other: Random(len(content)).randbytes(len(content)),
    "another type": lambda content, other: b"[]",
    "of another run": lambda content, other: other,
}
# command -> its arguments, and what its result is
COMMANDS = {
    "evaluate": (["evaluate", "RUN"], "RUN/results.json"),
    "report": (["report", "RUN", "--out", "OUT"], "OUT"),
    "export": (["export", "RUN", "--out", "OUT"], "OUT"),
    "export a client": (["export", "RUN", "--client", "bank", "--out", "OUT"], "OUT"),
    "chat": (["chat", "RUN", "--client", "bank", "--max-new-tokens", "2"], "printed"),
    "diagnose": (["diagnose", "RUN", "--only", "serving", "--rows", "2", "--out", "OUT"], "OUT"),
    "distill": (["distill", "CONFIG", "--out", "RUN"], "RUN"),
    "resume a finished run": (["run", "CONFIG", "--out", "RUN", "--resume"], "RUN/results.json"),
    "resume": (["run", "CONFIG", "--out", "HALF", "--resume"], "HALF"),
}


class Table(NamedTuple):
    """A finished and a half run with all kinds of files, and others of another seed."""

    folder: Path

    def call(self, *arguments: str) -> Ended:
        sets = [part for key in SETS for part in ("--set", key)]
        places = [self.folder / x.lower() if x.isupper() else x for x in arguments]

        def work() -> None:
            sys.stdin = io.StringIO("hello\n")
            os.environ["FEDSDR_CACHE"] = str(self.folder / "cache")
            command(*places, *(sets if "CONFIG" in arguments else []))()

        return forked(work)

    def on_a_copy(self, name: str, file: str = "", damage: str = "missing") -> tuple[Ended, object]:
        """Damage a file in a copy, call a command; return how it ended, and its result."""
        arguments, result = COMMANDS[name]
        kind = "half" if "HALF" in arguments else "run"
        for left in map(self.folder.joinpath, ("run", "half", "out")):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        run = shutil.copytree(self.folder / "kept" / kind, self.folder / kind)
        if file:
            content = (run / file).read_bytes()
            (run / file).unlink()
            if make := DAMAGES[damage]:
                other = self.folder / "kept" / f"other-{kind}" / file
                (run / file).write_bytes(make(content, other.read_bytes()))
        ended = self.call(*arguments)
        return ended, self._result(result, ended) if ended.code == 0 else None

    def _result(self, result: str, ended: Ended) -> object:
        if result == "printed":
            return ended.out
        place = self.folder / result.replace(result.split("/")[0], result.split("/")[0].lower())
        if place.is_dir():
            found = facts_of(place)
            found.pop("diagnose.json", None)  # it holds seconds
            return found
        text = place.read_text()
        return digest_without_seconds(json.loads(text)) if place.suffix == ".json" else text

    def cases(self) -> list[tuple[str, str, str]]:
        """Return (command, file, damage) of the table."""
        found = []
        for name, (arguments, _) in COMMANDS.items():
            run = self.folder / "kept" / ("half" if "HALF" in arguments else "run")
            files = [str(p.relative_to(run)) for p in sorted(run.rglob("*")) if p.is_file()]
            read = [f for f in files if not NOT_READ.search(f)]
            found += itertools.product([name], read, DAMAGES)
        return found


@pytest.fixture(scope="module")
def table(trial, tmp_path_factory, model_folder, data_folder) -> Table:
    table = Table(tmp_path_factory.mktemp("table"))
    text = CONFIG.format(model=model_folder, data=data_folder)
    (table.folder / "config").write_text(text)
    for name in ("run", "half", "other-run", "other-half"):
        more = ["--set", "federation.rounds=1"] if "half" in name else []
        more += ["--set", "seed=1"] if "other" in name else []
        ended = table.call("run", "CONFIG", "--out", f"{table.folder}/kept/{name}", *more)
        assert ended.code == 0, ended.err
    return table


def wrong_with(table: Table, case: tuple[str, str, str], undamaged: object) -> tuple[str, object]:
    """Return the outcome of a case, and what is wrong with it."""
    name, file, _ = case
    ended, result = table.on_a_copy(*case)
    if ended.code == 0:
        return "harmless", "" if result == undamaged else "another result without a word"
    place = table.folder / ("half" if name == "resume" else "run")
    named = [str(place / file), str((place / file).parent)]
    named += [str(place)] if name == "distill" else []  # which refuses any folder of a run
    told = len(ended.lines) == 1 and any(path in ended.lines[0] for path in named)
    return "found", "" if ended.code == 2 and told and "Traceback" not in ended.err else ended.err


def test_every_damage_to_every_file_is_found_or_harmless_under_every_command(table, full):
    cases = table.cases()
    assert len(cases) > 2000
    undamaged = {name: table.on_a_copy(name)[1] for name in COMMANDS}
    outcomes, wrong = {name: Counter() for name in COMMANDS}, {}
    for case in cases if full else Random(1).sample(cases, 9):
        outcome, reason = wrong_with(table, case, undamaged[case[0]])
        outcomes[case[0]][outcome] += 1
        if reason:
            wrong[case] = reason
    print(f"{len(cases)} cases,", {name: dict(found) for name, found in outcomes.items()})
    assert wrong == {}
