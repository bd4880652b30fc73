"""A folder with a few made-up questions of every suite, in the layouts of the public test sets."""

import csv
import gzip
import json
from pathlib import Path

from fedsdr.research.suites.catalogue import MEDICAL


def write_suites(folder: Path) -> Path:
    """Write all suites into `folder` and return it."""
    for subject in ("abstract_algebra", *MEDICAL):
        for split, count in (("dev", 6), ("test", 4)):
            rows = [[f"{split} {i}+{i}?", 0, 2 * i, 9, "no, none", "B"] for i in range(count)]
            _csv(folder / "mmlu" / "data" / split / f"{subject}_{split}.csv", rows)
    bbh = folder / "bbh" / "bbh"
    bbh.mkdir(parents=True)
    for task in ("boolean_expressions", "word_sorting"):
        examples = [{"input": f"not {i}", "target": f"{-i}"} for i in range(7)]
        (bbh / f"{task}.json").write_text(json.dumps({"canary": "x", "examples": examples}))
    header = "PCTID;BatchID;Premise;QCC;CorrectAnswer;Answer1;Answer2;PossibleAnswer3"
    crass = [f"{i};;A man runs.;What if he sat {i}?;He sat.;He ran.;No.;" for i in range(1, 6)]
    (folder / "crass").mkdir()
    (folder / "crass" / "CRASS_FTM_main_data_set.csv").write_text("\n".join([header, *crass, ""]))
    drop = [
        {
            "section_id": "",
            "query_id": f"q{i}",
            "passage": f"{i} men.",
            "question": " How many? ",
            "answers_spans": {"spans": [f"{i}", f"{i} " if i else "none"], "types": []},
        }
        for i in range(9)
    ]
    _jsonl(folder / "drop" / "drop_dev.jsonl", drop)
    gsm8k = [{"question": f"{i} and {i}?", "answer": f"Add.\n#### {2 * i}"} for i in range(8)]
    _jsonl(folder / "gsm8k" / "test.jsonl", gsm8k)
    humaneval = [
        {
            "task_id": f"HumanEval/{i}",
            "prompt": f"def add{i}(x):\n",
            "entry_point": f"add{i}",
            "canonical_solution": f"    return x + {i}\n",
            "test": f"def check(candidate):\n    assert candidate(1) == {i + 1}\n",
        }
        for i in range(2)
    ]
    (folder / "humaneval").mkdir()
    with gzip.open(folder / "humaneval" / "HumanEval.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in humaneval)
    news = [{"text": "Sales rose .", "label": "positive"}, {"text": "A .", "label": "neutral"}]
    _jsonl(folder / "financial_phrasebank" / "test.jsonl", news)
    return folder


def _csv(path: Path, rows: list[list[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows(rows)


def _jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
