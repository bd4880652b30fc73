"""Read public test sets from a local folder, in the layouts that docs/suites.md lists.

Rows get the columns of the data set that the harness's task uses.
"""

import csv
import gzip
import json
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedsdr.data.readers import read_rows
from fedsdr.errors import UserError

Row = dict[str, Any]
TaskRows = dict[str, dict[str, list[Row]]]  # task of the harness -> split -> rows
Reader = Callable[[Path], TaskRows]

FAULTS = (KeyError, IndexError, TypeError, ValueError, AttributeError, EOFError, RecursionError,
          csv.Error, zlib.error)  # fmt: skip


def mmlu(*subjects: str) -> Reader:
    """Return a reader of these subjects; without any, of all that have a test file."""

    def read(folder: Path) -> TaskRows:
        data = folder / "mmlu" / "data"
        found = [] if subjects else _files(data, "test/*_test.csv")
        names = subjects or [path.name.removesuffix("_test.csv") for path in found]
        return {
            f"mmlu_{name}": {
                split: _mmlu(_files(data, f"{split}/{name}_{split}.csv")[0])
                for split in ("dev", "test")
            }
            for name in names
        }

    return read


def _mmlu(path: Path) -> list[Row]:
    columns = ("question", "A", "B", "C", "D", "answer")
    with named_faults(path), path.open(encoding="utf-8-sig", newline="") as file:
        return [
            {**_texts(row, columns), "choices": [row[letter] for letter in "ABCD"]}
            for row in csv.DictReader(file, columns, strict=True)
        ]


def bbh(folder: Path) -> TaskRows:
    """Return one task per file; the worked examples are in the harness's own task files."""
    tasks = {}
    for path in _files(folder / "bbh" / "bbh", "*.json"):
        with named_faults(path):
            rows = json.loads(path.read_text(encoding="utf-8"))["examples"]
            examples = [_texts(row, ("input", "target")) for row in rows]
        tasks[f"bbh_fewshot_{path.stem}"] = {"test": examples}
    return tasks


def table(
    task: str,
    pattern: str,
    columns: Sequence[str],
    more: Callable[[Row], Row] = lambda row: {},
    split: str = "test",
    shots: int = 0,
) -> Reader:
    """Return a reader of one .jsonl, .jsonl.gz or .csv file.

    A row has `columns`, which must hold text, and what `more` returns. Worked examples: the first
    `shots` rows with different values in the first column; rows that share one are not asked.
    """

    def read(folder: Path) -> TaskRows:
        path = _files(folder, pattern)[0]
        with named_faults(path):
            if path.suffix == ".gz":
                with gzip.open(path, "rt", encoding="utf-8") as file:
                    found = [json.loads(line) for line in file]
            else:
                found = [row for _, row in read_rows(path)]
            rows = [{**_texts(row, columns), **more(row)} for row in found]
        firsts = {row[columns[0]]: row for row in reversed(rows)}
        examples = list(firsts.values())[::-1][:shots]
        shown = {row[columns[0]] for row in examples}
        return {task: {"train": examples, split: [r for r in rows if r[columns[0]] not in shown]}}

    return read


def crass(folder: Path) -> TaskRows:
    """Return CRASS, its options shuffled by one generator of seed 0 (instruct-eval)."""
    shuffle = random.Random(0).shuffle

    def options(row: Row) -> Row:
        names = ("CorrectAnswer", "Answer1", "Answer2", "PossibleAnswer3")
        found = [row[name].strip() for name in names if row[name].strip()]
        shuffle(found)
        return {
            "question": f"{row['Premise'].strip()} {row['QCC'].strip()}",
            "options": found,
            "answer": "ABCD"[found.index(row["CorrectAnswer"].strip())],
        }

    columns = ("Premise", "QCC", "CorrectAnswer")
    read = table("crass", "crass/CRASS_FTM_main_data_set.csv", columns, options)
    return {"crass": {"test": read(folder)["crass"]["test"]}}  # its task file has the examples


def drop_answers(row: Row) -> Row:
    """Return stripped passage and question, and the alternative answers, each a list of spans."""
    first, *others = row["answers_spans"]["spans"]
    texts = {name: row[name].strip() for name in ("passage", "question")}
    return {**texts, "answers": [[span.strip()] for span in (first, *others)]}


def _texts(row: Row, columns: Sequence[str]) -> Row:
    for name in columns:
        if not isinstance(row[name], str) or not row[name].strip():
            raise ValueError(f"{name} is {row[name]!r}, not a text")
    return {name: row[name] for name in columns}


def _files(folder: Path, pattern: str) -> list[Path]:
    """Return the files that match, in order of name; UserError when there are none."""
    found = sorted(path for path in folder.glob(pattern) if path.is_file())
    if not found:
        raise UserError(f"--suite-data: {folder}: no file {pattern} there")
    return found


@contextmanager
def named_faults(path: Path) -> Iterator[None]:
    """Turn any fault of a missing, broken or differently laid out file into a UserError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--suite-data: {path}: cannot be read: {reason}") from error
    except FAULTS as error:
        what = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise UserError(
            f"--suite-data: {path}: layout is not that of docs/suites.md: {what}"
        ) from error
